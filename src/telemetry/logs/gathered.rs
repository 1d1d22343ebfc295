//! Lines of the log on their way to standard error: gathered, and written by a thread of their own.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for others.
const GATHER: Duration = Duration::from_millis(10);

/// So many bytes may wait: seconds of a busy process whose reader has stopped.
const ROOM: usize = 4 << 20;

/// Room that stays when fewer bytes wait.
const KEPT: usize = 64 << 10;

/// How long the end waits for a reader that has stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines are left.
#[derive(Clone, Debug)]
pub struct Gathered(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// The writer is told of the first line, and whoever waits for the end of the last.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines that there was no room for, since the writer was here.
    lost: u64,
    /// The writer has gone to sleep until there are lines.
    is_idle: bool,
    /// Nothing is gathered any longer: it is the end.
    is_ending: bool,
}

impl Gathered {
    /// Starts the thread that writes.
    pub fn start(to: impl Write + Send + 'static) -> Self {
        let gathered = Self(Arc::default());
        let shared = Arc::clone(&gathered.0);
        let writer = thread::Builder::new().name("log".into()).spawn(move || shared.write_all(to));
        // Without threads there is no gateway either.
        drop(writer.expect("a thread can be started"));
        gathered
    }

    /// Waits until everything is written. What comes later is written as well, as long as the process lives.
    pub fn finish(&self) {
        let mut waiting = self.0.lock();
        waiting.is_ending = true;
        self.0.changed.notify_all();
        let is_writing = |waiting: &mut Waiting| !(waiting.is_idle && waiting.lines.is_empty());
        drop(self.0.changed.wait_timeout_while(waiting, PATIENCE, is_writing));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut to: impl Write) {
        let mut lines = Vec::new();
        loop {
            let mut waiting = self.lock();
            while waiting.lines.is_empty() {
                waiting.is_idle = true;
                self.changed.notify_all();
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            waiting.is_idle = false;
            if !waiting.is_ending {
                drop(waiting);
                thread::sleep(GATHER);
                waiting = self.lock();
            }
            mem::swap(&mut lines, &mut waiting.lines);
            let lost = mem::take(&mut waiting.lost);
            drop(waiting);
            // Nobody is there who could be told that nobody can be told.
            _ = to.write_all(&lines);
            lines.clear();
            lines.shrink_to(KEPT);
            if lost > 0 {
                tracing::warn!(lines = lost, "lines of the log are missing: standard error was not read");
            }
        }
    }
}

impl Write for &Gathered {
    /// Takes a line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.lines.len() + line.len() > ROOM {
            waiting.lost += 1;
            return Ok(line.len());
        }
        waiting.lines.extend_from_slice(line);
        if mem::replace(&mut waiting.is_idle, false) {
            drop(waiting);
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Gathered {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::time::Instant;

    use super::*;

    /// Tells what is written, and is done with it when it is told so.
    struct Reader(mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start() -> (Gathered, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
        let ((written, seen), (go_on, gone_on)) = (mpsc::channel(), mpsc::channel());
        (Gathered::start(Reader(written, gone_on)), seen, go_on)
    }

    #[test]
    fn lines_leave_together_and_in_their_order() {
        let (gathered, seen, go_on) = start();
        drop(go_on);
        (0..1000).for_each(|i| (&gathered).write_all(format!("{i}\n").as_bytes()).unwrap());
        gathered.finish();
        let all: Vec<_> = seen.try_iter().collect();
        assert!(all.len() < 500, "{} writes", all.len());
        let expected: String = (0..1000).map(|i| format!("{i}\n")).collect();
        assert_eq!(String::from_utf8(all.concat()).unwrap(), expected);
        (&gathered).write_all(b"late\n").unwrap();
        assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), b"late\n");
    }

    #[test]
    fn a_reader_that_has_stopped_stops_nobody() {
        let (gathered, seen, go_on) = start();
        (&gathered).write_all(b"first\n").unwrap();
        assert_eq!(seen.recv().unwrap(), b"first\n");
        let line = [b'x'; 1 << 20];
        (0..6).for_each(|_| assert_eq!((&gathered).write(&line).unwrap(), line.len()));
        assert_eq!(gathered.0.lock().lost, 2);
        let begun = Instant::now();
        gathered.finish();
        assert!(begun.elapsed() >= PATIENCE);
        drop(go_on);
        assert_eq!(seen.recv().unwrap().len(), ROOM);
    }
}
