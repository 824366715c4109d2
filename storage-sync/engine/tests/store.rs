//! The site store: what goes in, what comes out, and what never does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::Result;
use atoll_model::value::{ObjectKind, Value};
use storage_sync_engine::store::{Entry, IngestError, SiteStore, Source, StoreError, WalkLimits};
use support::{Site, damage, inode, look, object_path};

fn refusal(error: IngestError) -> String {
    match error {
        IngestError::Refused { path, why } => format!("{path} {why}"),
        other @ (IngestError::Missing(_) | IngestError::Changed(_) | IngestError::Store(_)) => {
            panic!("refused, not {other:?}")
        }
    }
}

#[test]
fn an_output_is_moved_into_the_store_and_handed_over_without_a_copy() -> Result<()> {
    let site = Site::new()?;
    let output = site.write("job/table.csv", b"a,b\n")?;
    let number = inode(&output)?;
    let stored = site.store.ingest(&output)?;
    assert!(!output.exists());
    assert_eq!(stored.object.id.digest(), blake3::hash(b"a,b\n").as_bytes());
    assert_eq!((stored.bytes_new, stored.bytes_copied), (4, 0));
    let lent = site.store.materialise(&site.path("in"), &Entry::for_value("csv", &stored.value))?;
    let input = site.path("in/csv/table.csv");
    assert_eq!((inode(&input)?, fs::read(&input)?), (number, b"a,b\n".to_vec()));
    assert_eq!(input.metadata()?.permissions().mode() & 0o7777, 0o444);
    assert_eq!((lent.bytes, lent.bytes_copied), (4, 0));
    assert!(site.store.touched(&lent)?.is_empty());
    site.store.take_back(&site.path("in"))?;
    assert!(!site.path("in").exists());
    Ok(())
}

#[test]
fn a_sealed_output_is_handed_over_before_its_digest_is_known_and_stays_the_same_file() -> Result<()> {
    let site = Site::new()?;
    site.write("out/t/a", b"1")?;
    site.write("out/t/sub/b", b"2")?;
    let before = look(&site.path("out/t"))?;
    let sealed = site.store.seal("claim", &site.path("out/t"))?;
    assert_eq!((sealed.files, sealed.bytes, sealed.directory, sealed.bytes_copied), (2, 2, true, 0));
    site.store.materialise(&site.path("early"), &[Entry::for_sealed("x", &sealed.name, sealed.seal)])?;
    let stored = site.store.commit(sealed.seal)?;
    site.store.materialise(&site.path("late"), &[Entry::for_sealed("x", &sealed.name, sealed.seal)])?;
    assert_eq!(look(&site.path("early/x/t"))?, before);
    assert_eq!(look(&site.path("late/x/t"))?, before);
    assert_eq!(inode(&site.path("early/x/t/sub/b"))?, inode(&site.path("late/x/t/sub/b"))?);
    assert_eq!(stored.object.kind, ObjectKind::Tree);
    let listing = site.store.listing(stored.object.id, 10)?;
    assert_eq!(listing.iter().map(|file| file.path.as_slice()).collect::<Vec<_>>(), [&b"a"[..], b"sub/b"]);
    site.store.drop_seal(sealed.seal)?;
    assert!(site.store.contains(stored.object));
    assert_eq!(site.store.stats().sealed, 0);
    Ok(())
}

#[test]
fn a9_collecting_again_after_a_crash_gives_the_same_answer_at_every_point() -> Result<()> {
    let site = Site::new()?;
    site.write("out/one", b"first")?;
    site.write("out/two/x", b"second")?;
    let one = site.store.seal("e/1/one", &site.path("out/one"))?;
    let two = site.store.seal("e/1/two", &site.path("out/two"))?;
    let site = site.reopen()?;
    assert_eq!(site.store.seal("e/1/one", &site.path("out/one"))?, one);
    assert_eq!(site.store.seal("e/1/two", &site.path("out/two"))?, two);
    let stored = site.store.commit(two.seal)?;
    let site = site.reopen()?;
    let again = site.store.seal("e/1/two", &site.path("out/two"))?;
    assert_eq!(site.store.commit(again.seal)?.value, stored.value);
    let file = site.store.commit(one.seal)?;
    assert_eq!(file.object.id.digest(), blake3::hash(b"first").as_bytes());
    // Another execution's output at the same path is another output, or missing.
    let missing = site.store.seal("e/2/one", &site.path("out/one")).unwrap_err();
    assert!(matches!(missing, IngestError::Missing(_)));
    Ok(())
}

#[test]
fn g11_an_output_that_changes_after_it_was_sealed_is_not_committed() -> Result<()> {
    let site = Site::new()?;
    let path = site.write("out/a", b"before")?;
    let open = fs::File::options().write(true).open(&path)?;
    let sealed = site.store.seal("claim", &path)?;
    open.write_all_at(b"AFTER!", 0)?;
    assert!(matches!(site.store.commit(sealed.seal).unwrap_err(), IngestError::Changed(_)));
    assert_eq!(site.store.stats().objects, 0);
    Ok(())
}

#[test]
fn d5_a_damaged_file_is_found_before_it_is_handed_over() -> Result<()> {
    let site = Site::new()?;
    let stored = site.store.ingest(&site.write("o", b"precious")?)?;
    damage(&object_path(&site.store, "objects", stored.object.id))?;
    let error = site.store.materialise(&site.path("in"), &Entry::for_value("x", &stored.value)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(!site.store.contains(stored.object));
    assert_eq!((site.store.stats().quarantined, site.store.stats().objects), (1, 0));
    assert_eq!(fs::read_dir(site.store.root().join("quarantine"))?.count(), 1);
    // The same bytes made again take its place.
    let again = site.store.ingest(&site.write("o", b"precious")?)?;
    assert_eq!(again.object, stored.object);
    site.store.verify(again.object)?;
    Ok(())
}

#[test]
fn d5_damage_while_the_agent_was_down_is_found_at_first_use() -> Result<()> {
    let site = Site::new()?;
    let stored = site.store.ingest(&site.write("o", b"precious")?)?;
    let path = object_path(&site.store, "objects", stored.object.id);
    let modified = path.metadata()?.modified()?;
    let site = site.reopen()?;
    damage(&path)?;
    // Even if whoever did it puts the times back.
    fs::File::options().write(true).open(&path)?.set_modified(modified)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444))?;
    assert!(matches!(site.store.verify(stored.object).unwrap_err(), StoreError::Damaged { .. }));
    Ok(())
}

#[test]
fn d5_a_tree_with_a_damaged_file_is_given_up_and_repaired_by_what_is_missing() -> Result<()> {
    let site = Site::new()?;
    site.write("t/a", b"aaa")?;
    site.write("t/b", b"bbb")?;
    let stored = site.store.ingest(&site.path("t"))?;
    let file = site.store.listing(stored.object.id, 1)?[0].object;
    damage(&object_path(&site.store, "objects", file))?;
    assert!(matches!(site.store.verify(stored.object).unwrap_err(), StoreError::Damaged { .. }));
    assert!(!site.store.contains(stored.object));
    site.write("t/a", b"aaa")?;
    site.write("t/b", b"bbb")?;
    assert_eq!(site.store.ingest(&site.path("t"))?.bytes_new, 3);
    site.store.verify(stored.object)?;
    Ok(())
}

#[test]
fn d5_what_a_borrower_wrote_into_is_found_and_taken_out_of_use() -> Result<()> {
    let site = Site::new()?;
    let stored = site.store.ingest(&site.write("o", b"precious")?)?;
    let other = site.store.ingest(&site.write("p", b"untouched")?)?;
    let mut entries = Entry::for_value("o", &stored.value);
    entries.extend(Entry::for_value("p", &other.value));
    let lent = site.store.materialise(&site.path("in"), &entries)?;
    damage(&site.path("in/o/o"))?;
    // A borrower that only takes its link away has done no harm.
    fs::remove_file(site.path("in/p/p"))?;
    let touched = site.store.touched(&lent)?;
    assert_eq!(touched.iter().map(|object| object.id).collect::<Vec<_>>(), [stored.object.id]);
    assert!(!site.store.contains(stored.object));
    assert!(site.store.contains(other.object));
    Ok(())
}

#[test]
fn d5_a_scrub_reads_what_nobody_touched() -> Result<()> {
    let site = Site::new()?;
    let stored = site.store.ingest(&site.write("o", b"precious")?)?;
    site.store.scrub(stored.object)?;
    site.store.verify(stored.object)?;
    Ok(())
}

#[test]
fn g5_more_than_an_output_may_hold_is_refused_where_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let limits = WalkLimits { entries: 3, depth: 2, bytes: 10, ..WalkLimits::default() };
    let store = SiteStore::open_with(&folder.path().join("store"), limits)?;
    let make = |name: &str, files: &[(&str, usize)]| -> Result<std::path::PathBuf> {
        let root = folder.path().join(name);
        fs::create_dir_all(&root)?;
        for (path, bytes) in files {
            fs::create_dir_all(root.join(path).parent().unwrap())?;
            fs::write(root.join(path), vec![7; *bytes])?;
        }
        Ok(root)
    };
    let many = make("many", &[("a", 1), ("b", 1), ("c", 1), ("d", 1)])?;
    assert!(refusal(store.ingest(&many).unwrap_err()).contains("more than 3 entries"));
    let deep = make("deep", &[("a/b/c", 1)])?;
    store.ingest(&deep)?;
    let deeper = make("deeper", &[("a/b/c/d", 1)])?;
    assert!(refusal(store.ingest(&deeper).unwrap_err()).contains("deep"));
    let large = make("large", &[("a", 5), ("b", 6)])?;
    assert!(refusal(store.ingest(&large).unwrap_err()).contains("above 10 bytes"));
    assert!(large.join("b").exists(), "what is refused stays where it is");
    Ok(())
}

#[test]
fn g6_odd_names_are_kept_byte_for_byte() -> Result<()> {
    let site = Site::new()?;
    let root = site.path("odd");
    fs::create_dir(&root)?;
    let names: [&[u8]; 10] = [
        b"with space",
        b"quote'\"",
        b"new\nline",
        b"\xff\xfe not utf-8",
        "Größe-数据".as_bytes(),
        b"-rf",
        b"CASE",
        b"case",
        b"back\\slash",
        &[b'n'; 255],
    ];
    for name in names {
        fs::write(root.join(std::ffi::OsStr::from_bytes(name)), name)?;
    }
    let before = look(&root)?;
    let stored = site.store.ingest(&root)?;
    site.store.materialise(&site.path("in"), &Entry::for_value("odd", &stored.value))?;
    assert_eq!(look(&site.path("in/odd/odd"))?, before);
    let single = root.with_file_name(std::ffi::OsStr::from_bytes(b"a \xff\n'b"));
    fs::write(&single, b"x")?;
    let stored = site.store.ingest(&single)?;
    let Value::File(file) = &stored.value else { panic!("a file") };
    assert_eq!(file.name.as_bytes(), b"a \xff\n'b");
    Ok(())
}

#[test]
fn g7_a_symbolic_link_that_leaves_the_tree_is_refused_by_name() -> Result<()> {
    for target in ["/etc/passwd", "../../secret", "..", "sub/../../x", "folder/../x", "nowhere/../x"] {
        let site = Site::new()?;
        site.write("t/sub/file", b"x")?;
        symlink("sub", site.path("t/folder"))?;
        symlink(target, site.path("t/bad\nlink"))?;
        let text = refusal(site.store.ingest(&site.path("t")).unwrap_err());
        assert!(text.contains("/t/bad\\nlink is a symbolic link to"), "{text}");
        assert_eq!(site.store.stats().objects, 0);
    }
    let site = Site::new()?;
    symlink("/etc/passwd", site.path("out"))?;
    assert!(refusal(site.store.ingest(&site.path("out")).unwrap_err()).contains("symbolic link"));
    Ok(())
}

#[test]
fn g7_a_symbolic_link_inside_the_tree_is_kept_as_it_is() -> Result<()> {
    let site = Site::new()?;
    site.write("t/sub/file", b"x")?;
    symlink("../sub/file", site.path("t/sub/link"))?;
    symlink("nowhere", site.path("t/dangling"))?;
    symlink("sub", site.path("t/folder"))?;
    site.write("t/sub/deep/file", b"y")?;
    symlink("sub/deep/../../sub/file", site.path("t/round"))?;
    let before = look(&site.path("t"))?;
    let stored = site.store.ingest(&site.path("t"))?;
    assert_eq!(stored.value, {
        let Value::Directory(mut tree) = stored.value.clone() else { panic!("a directory") };
        tree.files = 2;
        Value::Directory(tree)
    });
    site.store.materialise(&site.path("in"), &Entry::for_value("t", &stored.value))?;
    assert_eq!(look(&site.path("in/t/t"))?, before);
    Ok(())
}

#[test]
fn g10_special_files_are_refused_by_name() -> Result<()> {
    let site = Site::new()?;
    fs::create_dir(site.path("t"))?;
    rustix::fs::mkfifoat(rustix::fs::CWD, site.path("t/pipe"), rustix::fs::Mode::RWXU)?;
    let text = refusal(site.store.ingest(&site.path("t")).unwrap_err());
    assert!(text.contains("/t/pipe is a FIFO"), "{text}");
    fs::remove_file(site.path("t/pipe"))?;
    let _socket = std::os::unix::net::UnixListener::bind(site.path("t/socket"))?;
    let text = refusal(site.store.ingest(&site.path("t")).unwrap_err());
    assert!(text.contains("/t/socket is a socket"), "{text}");
    assert!(refusal(site.store.ingest(Path::new("/dev/null")).unwrap_err()).contains("character device"));
    Ok(())
}

#[test]
fn g10_hard_links_become_one_object_and_setuid_is_cleared() -> Result<()> {
    let site = Site::new()?;
    let first = site.write("t/a", b"same")?;
    fs::hard_link(&first, site.path("t/b"))?;
    let program = site.write("t/program", b"#!/bin/sh\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755))?;
    let stored = site.store.ingest(&site.path("t"))?;
    assert_eq!((stored.bytes_new, stored.bytes_copied), (14, 0));
    site.store.materialise(&site.path("in"), &Entry::for_value("t", &stored.value))?;
    assert_eq!(inode(&site.path("in/t/t/a"))?, inode(&site.path("in/t/t/b"))?);
    assert_eq!(site.path("in/t/t/program").metadata()?.permissions().mode() & 0o7777, 0o555);
    Ok(())
}

#[test]
fn g10_a_file_that_has_a_name_elsewhere_is_copied_so_that_nobody_can_change_it() -> Result<()> {
    let site = Site::new()?;
    let mine = site.write("home/mine", b"my data")?;
    fs::create_dir(site.path("t"))?;
    fs::hard_link(&mine, site.path("t/copy"))?;
    let stored = site.store.ingest(&site.path("t"))?;
    assert_eq!(stored.bytes_copied, 7);
    fs::set_permissions(&mine, fs::Permissions::from_mode(0o644))?;
    fs::write(&mine, b"changed")?;
    site.store.scrub(stored.object)?;
    Ok(())
}

#[test]
fn g10_holes_stay_holes() -> Result<()> {
    let site = Site::new()?;
    let path = site.write("sparse", b"")?;
    let file = fs::File::options().write(true).open(&path)?;
    file.set_len(5 << 30)?;
    file.write_all_at(b"end", (5 << 30) - 3)?;
    drop(file);
    let stored = site.store.ingest(&path)?;
    assert_eq!(stored.object.bytes, 5 << 30);
    let blocks = object_path(&site.store, "objects", stored.object.id).metadata()?.blocks();
    assert!(blocks * 512 < 1 << 20);
    assert_eq!(site.store.read(stored.object.id, (5 << 30) - 5, 100)?, b"\0\0end");
    Ok(())
}

#[test]
fn an_empty_file_and_an_empty_directory_are_objects_like_others() -> Result<()> {
    let site = Site::new()?;
    let file = site.store.ingest(&site.write("empty", b"")?)?;
    fs::create_dir(site.path("nothing"))?;
    let tree = site.store.ingest(&site.path("nothing"))?;
    let mut entries = Entry::for_value("f", &file.value);
    entries.extend(Entry::for_value("d", &tree.value));
    site.store.materialise(&site.path("in"), &entries)?;
    assert_eq!(site.path("in/f/empty").metadata()?.len(), 0);
    assert_eq!(fs::read_dir(site.path("in/d/nothing"))?.count(), 0);
    Ok(())
}

#[test]
fn elements_of_a_list_stand_under_their_numbers() -> Result<()> {
    let site = Site::new()?;
    let a = site.store.ingest(&site.write("1/text", b"a")?)?;
    let b = site.store.ingest(&site.write("2/text", b"b")?)?;
    let list = Value::list(vec![a.value, Value::Integer(5), b.value.clone(), Value::list(vec![b.value])]);
    site.store.materialise(&site.path("in"), &Entry::for_value("texts", &list))?;
    assert_eq!(fs::read(site.path("in/texts/0/text"))?, b"a");
    assert_eq!(fs::read(site.path("in/texts/2/text"))?, b"b");
    assert_eq!(fs::read(site.path("in/texts/3/0/text"))?, b"b");
    Ok(())
}

#[test]
fn what_belongs_to_somebody_else_is_imported_as_a_copy() -> Result<()> {
    let site = Site::new()?;
    let catalogue = site.write("data/catalogue.csv", b"quakes")?;
    symlink(&catalogue, site.path("link.csv"))?;
    let stored = site.store.import(&site.path("link.csv"))?;
    let Value::File(file) = &stored.value else { panic!("a file") };
    assert_eq!(file.name.as_bytes(), b"link.csv");
    assert!(catalogue.exists());
    assert_ne!(inode(&catalogue)?, inode(&object_path(&site.store, "objects", stored.object.id))?);
    let tree = site.store.import(&site.path("data"))?;
    assert_eq!(tree.bytes_new, 0);
    assert!(matches!(site.store.import(&site.path("none")).unwrap_err(), IngestError::Missing(_)));
    Ok(())
}

#[test]
fn what_is_there_is_counted_listed_found_and_removed() -> Result<()> {
    let site = Site::new()?;
    site.write("t/a", b"aaa")?;
    let tree = site.store.ingest(&site.path("t"))?;
    let site = site.reopen()?;
    let stats = site.store.stats();
    assert_eq!(stats.objects, 2);
    assert_eq!(site.store.list()?.len(), 2);
    assert_eq!(site.store.find(tree.object.id)?, Some(tree.object));
    assert!(site.store.remove(tree.object)?);
    assert!(!site.store.remove(tree.object)?);
    assert_eq!(site.store.find(tree.object.id)?, None);
    let error =
        site.store.materialise(&site.path("in"), &[Entry { path: "x".into(), source: Source::Tree(tree.object.id) }]);
    assert!(matches!(error.unwrap_err(), StoreError::NotFound(_)));
    Ok(())
}

#[test]
fn outputs_committed_together_get_an_answer_each() -> Result<()> {
    let site = Site::new()?;
    let mut seals = Vec::new();
    for index in 0..50 {
        let path = site.write(&format!("out/{index}"), format!("{}", index % 40).as_bytes())?;
        seals.push(site.store.seal(&format!("e/{index}"), &path)?.seal);
    }
    seals.push(storage_sync_engine::store::SealId(9_999));
    let answers = site.store.commit_all(&seals);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 50);
    assert!(matches!(answers[50], Err(IngestError::Store(StoreError::UnknownSeal(_)))));
    assert_eq!(site.store.stats().objects, 40);
    Ok(())
}

#[test]
fn ten_thousand_small_outputs_are_taken_in_and_handed_over() -> Result<()> {
    let site = Site::new()?;
    for index in 0..10_000 {
        let folder = site.path(&format!("t/{}", index % 100));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(index.to_string()), index.to_string())?;
    }
    let stored = site.store.ingest(&site.path("t"))?;
    assert_eq!(stored.bytes_copied, 0);
    let lent = site.store.materialise(&site.path("in"), &Entry::for_value("t", &stored.value))?;
    assert_eq!((lent.files, lent.bytes_copied), (10_000, 0));
    assert_eq!(site.store.listing(stored.object.id, 5)?.len(), 5);
    Ok(())
}

#[test]
fn many_at_a_time_borrow_the_same_object_and_none_is_taken_for_a_vandal() -> Result<()> {
    let site = Site::new()?;
    for index in 0..20 {
        site.write(&format!("t/{index}"), format!("{index}").as_bytes())?;
    }
    let stored = site.store.ingest(&site.path("t"))?;
    let entries = Entry::for_value("t", &stored.value);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (site, entries) = (&site, &entries);
                scope.spawn(move || -> Result<()> {
                    for round in 0..20 {
                        let folder = site.path(&format!("in/{thread}/{round}"));
                        let lent = site.store.materialise(&folder, entries)?;
                        assert!(site.store.touched(&lent)?.is_empty());
                        site.store.take_back(&folder)?;
                        site.store.ingest(&site.write(&format!("{thread}"), format!("{round}").as_bytes())?)?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    assert_eq!(site.store.stats().quarantined, 0);
    Ok(())
}
