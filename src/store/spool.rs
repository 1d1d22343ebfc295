//! Requests that wait to be written to the request log, in files, so that a process that is killed loses none of them.
//!
//! Two files in turn: one takes what is noted, while the requests of the other are written to the store. Nothing is
//! synchronised: what the operating system has taken outlives the process, and a loss of power costs what had not
//! reached the disk. A request that is in a file and in the store is the same one, by its id.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    mem,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use tokio::time::Instant;

use super::Logged;
use crate::pb::RequestRecord;

const FOLDER: &str = "journal";

/// A disk that takes longer for a few KB, twice in a row, holds up no more requests: it gets the rest when the store is
/// written to. Once may be a processor that had something else to do.
const SLOW: Duration = Duration::from_millis(5);
const SLOW_WRITES: u32 = 2;

/// Bytes that wait for a slow disk. What is more is only in memory, as all of it would be without files.
const BACKLOG: usize = 32 << 20;

/// A file's bytes, see [`BACKLOG`]: about 30,000 requests, three times what the queue holds.
const FILE: u64 = 64 << 20;

/// The files.
#[derive(Debug)]
pub struct Spool {
    backlog: Mutex<Vec<u8>>,
    pair: Mutex<Pair>,
    /// Since the last one that was not.
    slow_writes: AtomicU32,
}

/// What processes left that ended without writing it to the store.
#[derive(Debug, Default)]
pub struct Left {
    /// In the order in which they were noted, process by process.
    pub requests: Vec<Logged>,
    /// Files that end in the middle of a request.
    pub torn: usize,
}

#[derive(Debug)]
struct Pair {
    segments: [Segment; 2],
    current: usize,
    /// Of earlier processes, locked by this one.
    left: Vec<(PathBuf, File)>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Spool {
    /// Makes the files, and takes over what earlier processes left there. What living ones write stays theirs.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(data_dir: &Path) -> io::Result<(Self, Left)> {
        let folder = data_dir.join(FOLDER);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        // Nobody looks between the making of a file and its lock.
        let alone = File::open(&folder)?;
        alone.lock()?;
        let (mut left, mut files) = (Left::default(), Vec::new());
        let mut paths: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            if file.try_lock().is_err() {
                continue;
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            left.torn += usize::from(!unframe(&bytes, &mut left.requests));
            files.push((path, file));
        }
        let name = uuid::Uuid::now_v7().simple().to_string();
        let make = |number: usize| {
            let path = folder.join(format!("{name}-{number}"));
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.try_lock()?;
            Ok::<_, io::Error>(Segment { path, file, length: 0 })
        };
        let pair = Mutex::new(Pair { segments: [make(0)?, make(1)?], current: 0, left: files });
        Ok((Self { backlog: Mutex::default(), pair, slow_writes: AtomicU32::new(0) }, left))
    }

    /// Notes a request that waits already.
    pub fn note(&self, frame: &[u8]) {
        let mut backlog = self.backlog();
        if backlog.len() < BACKLOG {
            backlog.extend_from_slice(frame);
        }
        drop(backlog);
        if !self.is_slow() {
            self.write_out();
        }
    }

    /// Goes on in the other file. Whatever was noted before the last turn, and by earlier processes, must be in the
    /// store. May wait for the disk.
    pub fn turn(&self) {
        self.write_out();
        let mut pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, _) in mem::take(&mut pair.left) {
            _ = fs::remove_file(path);
        }
        let other = 1 - pair.current;
        if pair.segments[other].truncate(0).is_ok() {
            pair.current = other;
        }
    }

    /// Writes what a slow disk was spared, before the process ends. Waits for the disk.
    pub fn write_rest(&self) {
        while !self.backlog().is_empty() {
            self.write_out();
        }
    }

    /// Ends without leaving anything: all of it is in the store.
    pub fn remove(&self) {
        let pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = pair.segments.iter().map(|segment| &segment.path);
        paths.chain(pair.left.iter().map(|(path, _)| path)).for_each(|path| _ = fs::remove_file(path));
    }

    fn is_slow(&self) -> bool {
        self.slow_writes.load(Ordering::Relaxed) >= SLOW_WRITES
    }

    fn backlog(&self) -> MutexGuard<'_, Vec<u8>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has come together. One does it at a time, for all: who finds somebody at it waits for no disk. What
    /// others add meanwhile it writes as well, but not to a slow disk: that would hold it for as long as they come.
    fn write_out(&self) {
        loop {
            let mut pair = match self.pair.try_lock() {
                Ok(pair) => pair,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let due = mem::take(&mut *self.backlog());
            if !due.is_empty() {
                let began = Instant::now();
                let current = pair.current;
                pair.segments[current].append(&due);
                // Only who holds the pair changes it.
                let slow_writes = self.slow_writes.load(Ordering::Relaxed);
                let is_slow = began.elapsed() > SLOW;
                self.slow_writes
                    .store(if is_slow { slow_writes.saturating_add(1) } else { 0 }, Ordering::Relaxed);
            }
            drop(pair);
            // Somebody may have come between the last look and the end of the lock.
            if self.is_slow() || self.backlog().is_empty() {
                return;
            }
        }
    }
}

impl Segment {
    /// All of it or nothing: half a request would hide those behind it.
    fn append(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() as u64 > FILE {
            return;
        }
        match self.file.write_all(bytes) {
            Ok(()) => self.length += bytes.len() as u64,
            Err(_) => _ = self.truncate(self.length),
        }
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        if self.length == length && self.file.stream_position()? == length {
            return Ok(());
        }
        self.file.set_len(length)?;
        self.file.seek(SeekFrom::Start(length))?;
        self.length = length;
        Ok(())
    }
}

/// A request as it is in a file: the length of the rest, that of the tenant, the tenant, the record.
pub fn frame(request: &Logged) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&length(request.tenant.len()));
    bytes.extend_from_slice(request.tenant.as_bytes());
    request.record.encode(&mut bytes).expect("a vector has room");
    let rest = length(bytes.len() - 4);
    bytes[..4].copy_from_slice(&rest);
    bytes
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

/// Takes the requests out of a file. False: it ends in the middle of one.
fn unframe(mut bytes: &[u8], into: &mut Vec<Logged>) -> bool {
    fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        let length = u32::from_le_bytes(*length);
        bytes.split_off(..usize::try_from(length).ok()?)
    }
    fn one(bytes: &mut &[u8]) -> Option<Logged> {
        let mut rest = part(bytes)?;
        let tenant = String::from_utf8(part(&mut rest)?.to_owned()).ok()?;
        let record = RequestRecord::decode(rest).ok().filter(|record| !record.id.is_empty())?;
        Some(Logged { tenant, record })
    }
    while !bytes.is_empty() {
        let Some(request) = one(&mut bytes) else { return false };
        into.push(request);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn request(id: &str) -> Logged {
        let record = RequestRecord { id: id.into(), prompt: "p".repeat(100), ..Default::default() };
        Logged { tenant: format!("of {id}"), record }
    }

    fn note(spool: &Spool, id: &str) {
        spool.note(&frame(&request(id)));
    }

    fn left(folder: &Path) -> (Vec<String>, usize) {
        let (_, left) = Spool::open(folder).unwrap();
        let ids = left.requests.iter().map(|one| {
            assert_eq!(one.tenant, format!("of {}", one.record.id));
            one.record.id.clone()
        });
        (ids.collect(), left.torn)
    }

    #[test]
    fn what_was_noted_since_the_last_turn_but_one_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        for id in ["a", "b"] {
            note(&spool, id);
        }
        spool.turn();
        note(&spool, "c");
        // Whoever lives keeps its own.
        assert_eq!(left(folder.path()), (vec![], 0));
        drop(spool);
        let (spool, found) = Spool::open(folder.path()).unwrap();
        assert_eq!(found.requests.len(), 3);
        note(&spool, "d");
        spool.turn();
        spool.turn();
        note(&spool, "e");
        drop(spool);
        assert_eq!(left(folder.path()), (vec!["e".to_owned()], 0));
    }

    #[test]
    fn nothing_is_left_by_who_ends_well() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        note(&spool, "a");
        spool.remove();
        drop(spool);
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_ends_in_the_middle_gives_what_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let whole = frame(&request("a"));
        let file = folder.path().join(FOLDER).join("old");
        let (spool, _) = Spool::open(folder.path()).unwrap();
        drop(spool);
        for cut in 1..whole.len() {
            fs::write(&file, [&whole[..], &whole[..cut]].concat()).unwrap();
            assert_eq!(left(folder.path()), (vec!["a".to_owned()], 1), "{cut}");
        }
        fs::write(&file, [&whole[..], &[0; 64]].concat()).unwrap();
        assert_eq!(left(folder.path()), (vec!["a".to_owned()], 1));
    }

    #[test]
    fn a_slow_disk_holds_up_nobody_for_those_who_come_later() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        // A pipe takes no more than its reader does, however much it is given.
        let (mut reader, writer) = io::pipe().unwrap();
        spool.pair.lock().unwrap().segments[0].file = File::from(std::os::fd::OwnedFd::from(writer));
        let noted = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let deadline = Instant::now() + Duration::from_secs(3);
        let all = || noted.iter().all(|count| count.load(Ordering::Relaxed) > 20);
        std::thread::scope(|scope| {
            for count in &noted {
                scope.spawn(|| {
                    while !all() && Instant::now() < deadline {
                        spool.note(&[0; 8 << 10]);
                        count.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            while !all() && Instant::now() < deadline {
                reader.read_exact(&mut [0; 4 << 10]).unwrap();
                std::thread::sleep(SLOW);
            }
            drop(reader);
        });
        assert!(all(), "{noted:?}");
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let spool = &spool;
                scope.spawn(move || (0..250).for_each(|i| note(spool, &format!("{thread}-{i}"))));
            }
        });
        spool.turn();
        drop(spool);
        let (ids, torn) = left(folder.path());
        assert_eq!((ids.len(), torn), (1000, 0));
    }
}
