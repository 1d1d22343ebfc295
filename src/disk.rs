//! Files that are there as a whole or not at all, and only for so long.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use tokio::{fs, io::AsyncWriteExt as _};

/// Writes a file below a folder, which is made if it is not there.
pub async fn write<'a>(
    folder: &Path,
    name: &str,
    pieces: impl IntoIterator<Item = &'a Bytes>,
) -> io::Result<()> {
    fs::create_dir_all(folder).await?;
    let unfinished = folder.join(format!("{name}.part"));
    let mut file = fs::File::create(&unfinished).await?;
    for piece in pieces {
        file.write_all(piece).await?;
    }
    file.flush().await?;
    fs::rename(unfinished, folder.join(name)).await
}

/// Removes the files of a folder that have not been changed for longer than this.
pub async fn sweep(folder: &Path, lifetime: Duration) {
    let Ok(mut entries) = fs::read_dir(folder).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let modified = entry.metadata().await.and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > lifetime)) {
            _ = fs::remove_file(entry.path()).await;
        }
    }
}
