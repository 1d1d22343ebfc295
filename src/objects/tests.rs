//! A folder as the place; buckets are tested against a server of S3's language (tests/clients/test_images_store.py).

use std::time::SystemTime;

use super::*;

fn objects(folder: &std::path::Path) -> Arc<Objects> {
    Objects::open(&ImagesSettings::below(folder)).unwrap()
}

async fn read(objects: &Objects, name: &[&str]) -> Option<Vec<u8>> {
    let found = objects.get(name).await.unwrap()?;
    let pieces: Vec<Bytes> = found.pieces.try_collect().await.unwrap();
    let whole = pieces.concat();
    assert_eq!(whole.len() as u64, found.bytes);
    Some(whole)
}

fn put_back(path: &std::path::Path, by: Duration) {
    let file = std::fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[tokio::test]
async fn what_is_put_in_pieces_is_got_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path());
    assert!(!folder.path().join("images").exists(), "made before it is needed");
    let pieces = [Bytes::from_static(b"an "), Bytes::from_static(b"image")];
    objects.put(&["files", "a.png"], "image/png", pieces).await.unwrap();
    assert_eq!(read(&objects, &["files", "a.png"]).await.unwrap(), b"an image");
    assert_eq!(read(&objects, &["files", "b.png"]).await, None);
    let files: Vec<_> = std::fs::read_dir(folder.path().join("images/files")).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

#[tokio::test]
async fn a_name_cannot_lead_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path());
    for name in ["..", "../up", "a/b", "/etc", ".", "tenant with spaces", "tenant#1", "ü"] {
        objects.put(&["log", name, "0"], "image/png", [Bytes::from_static(b"x")]).await.unwrap();
        assert_eq!(read(&objects, &["log", name, "0"]).await.unwrap(), b"x", "{name}");
    }
    let folders = objects.folders("log").await.unwrap();
    assert_eq!(folders.len(), 8, "{folders:?}");
    let above: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(above.len(), 1, "{above:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_swept_and_what_was_never_finished() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path());
    for name in ["old.png", "young.png", "unfinished.png#1"] {
        // The mark of what is unfinished would be escaped.
        objects.put(&["files", "seed"], "image/png", []).await.unwrap();
        std::fs::write(folder.path().join("images/files").join(name), b"x").unwrap();
    }
    let files = folder.path().join("images/files");
    for name in ["old.png", "unfinished.png#1"] {
        put_back(&files.join(name), Duration::from_secs(3601));
    }
    let sweep = objects.keep_swept("files", Duration::from_secs(3600));
    _ = timeout(Duration::from_secs(1), sweep).await;
    assert!(!files.join("old.png").exists() && !files.join("unfinished.png#1").exists());
    assert!(files.join("young.png").exists());
}

#[tokio::test]
async fn a_whole_folder_is_removed_at_once_and_may_be_gone() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path());
    for day in ["2026-01-01", "2026-01-02"] {
        objects.put(&["log", day, "tenant", "id", "0.png"], "image/png", []).await.unwrap();
    }
    let mut days = objects.folders("log").await.unwrap();
    days.sort();
    assert_eq!(days, ["2026-01-01", "2026-01-02"]);
    for _ in 0..2 {
        objects.remove_all(&["log", "2026-01-01"]).await.unwrap();
    }
    assert_eq!(objects.folders("log").await.unwrap(), ["2026-01-02"]);
    assert_eq!(objects.folders("nothing").await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_place_that_takes_nothing_is_away_until_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let objects = objects(folder.path());
    std::fs::write(folder.path().join("images"), b"a file").unwrap();
    assert!(objects.put(&["files", "a"], "image/png", []).await.is_err());
    assert!(objects.is_away.load(Ordering::Relaxed));
    std::fs::remove_file(folder.path().join("images")).unwrap();
    objects.put(&["files", "a"], "image/png", []).await.unwrap();
    assert!(!objects.is_away.load(Ordering::Relaxed));
}

#[test]
fn what_a_server_repeats_of_a_key_is_not_told() {
    let body = "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>marker</AWSAccessKeyId></Error>";
    let error = object_store::Error::PermissionDenied { path: "secret.png".into(), source: body.into() };
    assert_eq!(reason(&error), "access denied: InvalidAccessKeyId");
}
