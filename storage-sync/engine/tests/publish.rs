//! Publishing: nothing in part, nothing in place of something else, nothing outside of where it may be written.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use storage_sync_engine::publish::{PathTarget, PublishError, publish_at_path, publish_in_bucket};
use support::azurite::Azurite;
use support::s3;
use tokio_util::sync::CancellationToken;

struct Site {
    folder: tempfile::TempDir,
    /// Where may be written.
    root: PathBuf,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("public");
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(folder.path().join("tree/deep")).unwrap();
        fs::write(folder.path().join("tree/a"), "a").unwrap();
        fs::write(folder.path().join("tree/deep/tool"), "b").unwrap();
        fs::set_permissions(folder.path().join("tree/deep/tool"), fs::Permissions::from_mode(0o555)).unwrap();
        symlink("a", folder.path().join("tree/link")).unwrap();
        fs::write(folder.path().join("file"), "one").unwrap();
        fs::write(folder.path().join("other"), "two").unwrap();
        Self { folder, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn publish(&self, from: &str, to: &Path, overwrite: bool) -> Result<(), PublishError> {
        self.publish_unless(from, to, overwrite, &CancellationToken::new())
    }

    fn publish_unless(
        &self,
        from: &str,
        to: &Path,
        overwrite: bool,
        given_up: &CancellationToken,
    ) -> Result<(), PublishError> {
        let (roots, never) = ([self.root.clone()], self.root.join("agent"));
        let to =
            PathTarget { path: to, roots: &roots, never: &never, overwrite, unfinished: ".atoll-exec.", attempt: "2" };
        publish_at_path(&self.path(from), to, given_up)
    }

    /// Names in the folder that may be written to.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_file_and_a_tree_stand_where_they_were_published_and_belong_to_whom_they_are_given() {
    let site = Site::new();
    site.publish("file", &site.root.join("maps/new/file"), false).unwrap();
    assert_eq!(fs::read_to_string(site.root.join("maps/new/file")).unwrap(), "one");
    site.publish("tree", &site.root.join("tree"), false).unwrap();
    assert_eq!(fs::read_to_string(site.root.join("tree/a")).unwrap(), "a");
    assert_eq!(fs::read_link(site.root.join("tree/link")).unwrap(), Path::new("a"));
    let mode = |path: &str| fs::metadata(site.root.join(path)).unwrap().permissions().mode();
    assert!(mode("tree/deep/tool") & 0o300 == 0o300 && mode("tree/a") & 0o111 == 0, "writable, and run as it was");
    assert_eq!(site.names(), ["maps", "tree"], "nothing else");
}

#[test]
fn the_same_content_again_is_as_good_as_done_and_another_is_refused() {
    let site = Site::new();
    let (file, tree) = (site.root.join("file"), site.root.join("tree"));
    for _ in 0..2 {
        site.publish("file", &file, false).unwrap();
        site.publish("tree", &tree, false).unwrap();
    }
    let refused = site.publish("other", &file, false).unwrap_err();
    assert!(matches!(refused, PublishError::Exists(_)), "{refused}");
    fs::write(tree.join("more"), "").unwrap();
    assert!(matches!(site.publish("tree", &tree, false), Err(PublishError::Exists(_))), "a file more is another tree");
    assert!(matches!(site.publish("file", &tree, false), Err(PublishError::Exists(_))));
    assert_eq!(fs::read_to_string(&file).unwrap(), "one");
}

#[test]
fn what_may_be_overwritten_is_replaced_whole() {
    let site = Site::new();
    let to = site.root.join("it");
    site.publish("tree", &to, true).unwrap();
    fs::write(to.join("more"), "").unwrap();
    site.publish("tree", &to, true).unwrap();
    assert!(!to.join("more").exists());
    for (from, content) in [("file", "one"), ("other", "two")] {
        site.publish(from, &to, true).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), content);
    }
    site.publish("tree", &to, true).unwrap();
    assert_eq!((fs::read_to_string(to.join("a")).unwrap().as_str(), site.names()), ("a", vec!["it".to_owned()]));
}

#[test]
fn what_is_given_up_or_fails_leaves_nothing_and_an_earlier_attempts_remains_go() {
    let site = Site::new();
    let given_up = CancellationToken::new();
    given_up.cancel();
    let error = site.publish_unless("tree", &site.root.join("tree"), false, &given_up).unwrap_err();
    assert!(matches!(error, PublishError::GivenUp), "{error}");
    assert_eq!(site.names(), [""; 0]);
    assert!(matches!(site.publish("nothing", &site.root.join("x"), false), Err(PublishError::Disk { .. })));
    assert_eq!(site.names(), [""; 0]);
    fs::create_dir_all(site.root.join(".atoll-exec.1/half")).unwrap();
    fs::write(site.root.join(".atoll-exec.2"), "half").unwrap();
    fs::write(site.root.join(".atoll-other.1"), "of another").unwrap();
    site.publish("file", &site.root.join("file"), false).unwrap();
    assert_eq!(site.names(), [".atoll-other.1", "file"]);
}

#[test]
fn links_lead_to_nowhere_that_may_not_be_written_to() {
    let site = Site::new();
    let outside = site.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, site.root.join("away")).unwrap();
    symlink(site.path("nowhere"), site.root.join("dangling")).unwrap();
    symlink("inside", site.root.join("near")).unwrap();
    fs::create_dir(site.root.join("inside")).unwrap();
    for to in [site.root.join("away/x"), site.root.join("away/new/x"), outside.join("x")] {
        let error = site.publish("file", &to, true).unwrap_err();
        assert!(matches!(error, PublishError::NotAllowed { .. }), "{}: {error}", to.display());
    }
    site.publish("file", &site.root.join("dangling/x"), true).unwrap_err();
    for to in [site.root.join("../outside/x"), PathBuf::from("public/x"), PathBuf::from("/")] {
        let error = site.publish("file", &to, true).unwrap_err();
        assert!(matches!(error, PublishError::Refused { .. }), "{}: {error}", to.display());
    }
    // Nor to what the agent keeps to itself.
    assert!(matches!(site.publish("file", &site.root.join("agent/x"), true), Err(PublishError::NotAllowed { .. })));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!site.path("nowhere").exists());

    site.publish("file", &site.root.join("near/x"), false).unwrap();
    assert_eq!(fs::read_to_string(site.root.join("inside/x")).unwrap(), "one");
    // A link at the target itself is replaced, and what it leads to stays.
    symlink(site.path("other"), site.root.join("link")).unwrap();
    assert!(matches!(site.publish("file", &site.root.join("link"), false), Err(PublishError::Exists(_))));
    site.publish("file", &site.root.join("link"), true).unwrap();
    assert_eq!(fs::read_to_string(site.path("other")).unwrap(), "two");
    assert!(fs::symlink_metadata(site.root.join("link")).unwrap().is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_gets_a_file_or_all_of_a_directory_and_nothing_twice() -> Result<()> {
    let Some(bucket) = s3::url() else { return Ok(()) };
    let store = s3::store(&bucket)?;
    files_and_directories_are_published_once(&bucket, &store).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_a_file_or_all_of_a_directory_and_nothing_twice() -> Result<()> {
    let Some(azurite) = Azurite::found() else { return Ok(()) };
    let store = azurite.store()?;
    files_and_directories_are_published_once(&azurite.url, &store).await
}

/// In a bucket that both the URL and the store lead to.
async fn files_and_directories_are_published_once(bucket: &str, store: &dyn ObjectStore) -> Result<()> {
    let (scheme, place) = bucket.split_once("://").unwrap();
    let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
    let root = format!("{prefix}/publish-{}", std::process::id());
    let root = root.trim_start_matches('/');
    let site = Site::new();
    fs::remove_file(site.path("tree/link"))?;
    let mut large = vec![0; 20 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut large);
    fs::write(site.path("tree/large # 1"), &large)?;
    let given_up = CancellationToken::new();
    let publish = async |from: &str, to: &str, overwrite: bool| {
        let url = format!("{scheme}://{name}/{root}/{to}").parse().unwrap();
        publish_in_bucket(&site.path(from), &url, overwrite, &given_up).await
    };
    let key = |key: &str| Key::parse(format!("{root}/{key}")).unwrap();
    let written = async |of: &str| store.head(&key(of)).await.map(|found| found.last_modified);

    for _ in 0..2 {
        publish("tree", "tiles/", false).await?;
        publish("file", "file", false).await?;
    }
    assert_eq!(store.get(&key("tiles/deep/tool")).await?.bytes().await?, "b");
    assert!(store.get(&key("tiles/large # 1")).await?.bytes().await? == large, "in several parts");
    let before = written("tiles/large # 1").await?;
    fs::write(site.path("tree/a"), "another")?;
    assert!(matches!(publish("tree", "tiles", false).await, Err(PublishError::Exists(_))));
    assert_eq!(store.get(&key("tiles/a")).await?.bytes().await?, "a");
    publish("tree", "tiles", true).await?;
    assert_eq!(store.get(&key("tiles/a")).await?.bytes().await?, "another");
    assert_eq!(written("tiles/large # 1").await?, before, "what is there is not sent again");

    // What others have put there says nothing of its content, and is read.
    store.put(&key("theirs"), "one".into()).await?;
    publish("file", "theirs", false).await?;
    assert!(matches!(publish("other", "theirs", false).await, Err(PublishError::Exists(_))));
    store.put(&key("tiles/stranger"), "x".into()).await?;
    assert!(matches!(publish("tree", "tiles", false).await, Err(PublishError::Exists(_))));

    assert!(matches!(publish("file", "", false).await, Err(PublishError::Refused { .. })), "without a name");
    symlink("a", site.path("tree/link"))?;
    let error = publish("tree", "linked", false).await.unwrap_err();
    assert!(error.to_string().contains("is a link"), "{error}");
    given_up.cancel();
    assert!(matches!(publish("file", "late", false).await, Err(PublishError::GivenUp)));
    assert!(written("late").await.is_err());
    Ok(())
}
