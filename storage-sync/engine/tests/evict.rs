//! Making room in a store, and finding damage in it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use atoll_model::value::{ObjectKind, ObjectRef};
use storage_sync_engine::store::{Entry, Evictable, ScrubPlace, SiteStore, StoreError};
use support::{Site, object_path};

fn objects(found: &[Evictable]) -> Vec<ObjectRef> {
    found.iter().map(|found| found.object).collect()
}

fn propose(site: &Site) -> Result<Vec<ObjectRef>> {
    Ok(objects(&site.store.evictable(u64::MAX, Duration::ZERO, usize::MAX)?))
}

fn gone(site: &Site, objects: &[ObjectRef]) -> Result<Vec<bool>> {
    Ok(site.store.evict(objects)?.iter().map(|eviction| eviction.gone).collect())
}

#[test]
fn what_nobody_uses_goes_and_makes_room() -> Result<()> {
    let site = Site::new()?;
    let stored = site.store.ingest(&site.write("a", &[1; 10_000])?)?;
    let proposed = site.store.evictable(1, Duration::ZERO, 10)?;
    assert_eq!((proposed[0].object, proposed[0].frees), (stored.object, 10_000));
    let evicted = site.store.evict(&[stored.object])?;
    assert_eq!((evicted[0].gone, evicted[0].freed), (true, 10_000));
    assert!(!site.store.contains(stored.object));
    assert_eq!((site.store.stats().objects, site.store.stats().bytes), (0, 0));
    Ok(())
}

#[test]
fn what_was_used_lately_is_not_proposed() -> Result<()> {
    let site = Site::new()?;
    site.store.ingest(&site.write("a", b"new")?)?;
    assert!(site.store.evictable(u64::MAX, Duration::from_secs(3_600), 10)?.is_empty());
    Ok(())
}

#[test]
fn a_tree_goes_with_what_it_alone_is_made_of_and_leaves_what_others_share() -> Result<()> {
    let site = Site::new()?;
    for (path, content) in [("one/own", "1"), ("one/sub/shared", "both"), ("two/shared", "both"), ("two/own", "2")] {
        site.write(path, content.as_bytes())?;
    }
    let one = site.store.ingest(&site.path("one"))?;
    let two = site.store.ingest(&site.path("two"))?;
    let found = objects(&site.store.evictable_of(&[one.object])?);
    // The tree, its folder, and its own file.
    assert_eq!((found.len(), found[0]), (3, one.object));
    assert_eq!(gone(&site, &found)?, [true; 3]);
    assert!(!site.store.contains(one.object));
    site.store.scrub(two.object)?;
    site.store.materialise(&site.path("in"), &Entry::for_value("x", &two.value))?;
    assert_eq!(fs::read(site.path("in/x/two/shared"))?, b"both");
    Ok(())
}

#[test]
fn a_part_of_a_tree_is_never_proposed_by_itself() -> Result<()> {
    let site = Site::new()?;
    site.write("t/f", b"part")?;
    let tree = site.store.ingest(&site.path("t"))?;
    let part = site.store.ingest(&site.write("f", b"part")?)?;
    assert!(site.store.evictable_of(&[part.object])?.is_empty());
    assert_eq!(propose(&site)?.len(), 2);
    // Even if somebody asks for it: the tree is still there.
    assert_eq!(gone(&site, &[part.object])?, [false]);
    assert!(site.store.contains(tree.object) && site.store.contains(part.object));
    Ok(())
}

#[test]
fn a15_what_is_used_after_it_was_proposed_stays_whatever_the_use() -> Result<()> {
    let site = Site::new()?;
    let lent = site.store.ingest(&site.write("lent", b"lent")?)?;
    let made = site.store.ingest(&site.write("made", b"made")?)?;
    let sealed = site.store.ingest(&site.write("sealed", b"sealed")?)?;
    site.write("t/part", b"part")?;
    let part = site.store.ingest(&site.write("part", b"part")?)?;
    let proposed = propose(&site)?;
    assert_eq!(proposed.len(), 4);
    site.store.materialise(&site.path("in"), &Entry::for_value("x", &lent.value))?;
    site.store.take_back(&site.path("in"))?;
    site.store.ingest(&site.write("again", b"made")?)?;
    let seal = site.store.seal("claim", &site.write("third", b"sealed")?)?;
    site.store.commit(seal.seal)?;
    let tree = site.store.ingest(&site.path("t"))?;
    assert_eq!(gone(&site, &proposed)?, [false; 4]);
    for object in [lent.object, made.object, sealed.object, part.object, tree.object] {
        site.store.scrub(object)?;
    }
    Ok(())
}

#[test]
fn what_is_lent_is_neither_proposed_nor_let_go() -> Result<()> {
    let site = Site::new()?;
    site.write("t/a", b"a")?;
    let tree = site.store.ingest(&site.path("t"))?;
    let proposed = propose(&site)?;
    site.store.materialise(&site.path("in"), &Entry::for_value("x", &tree.value))?;
    assert_eq!(gone(&site, &proposed)?, [false, false]);
    assert!(propose(&site)?.is_empty());
    site.store.take_back(&site.path("in"))?;
    assert_eq!(propose(&site)?.len(), 2);
    Ok(())
}

#[test]
fn a15_an_order_of_a_process_before_lets_nothing_go_and_says_what_is_gone() -> Result<()> {
    let site = Site::new()?;
    let kept = site.store.ingest(&site.write("a", b"a")?)?;
    let left = site.store.ingest(&site.write("b", b"b")?)?;
    let proposed = propose(&site)?;
    assert_eq!(proposed.len(), 2);
    site.store.evict(&[left.object])?;
    let site = site.reopen()?;
    assert_eq!(gone(&site, &[kept.object, left.object])?, [false, true]);
    Ok(())
}

/// Removes names in the order in which an eviction does, one more each time, as a process that is killed leaves them.
#[test]
fn a15_killed_between_any_two_steps_of_an_eviction_no_tree_is_there_in_part() -> Result<()> {
    for killed_after in 0..=4 {
        let site = Site::new()?;
        for name in ["t/a", "t/b", "t/sub/c"] {
            site.write(name, name.as_bytes())?;
        }
        let tree = site.store.ingest(&site.path("t"))?;
        let order = propose(&site)?;
        assert_eq!(order.len(), 5);
        let (trees, files): (Vec<_>, Vec<_>) = order.into_iter().partition(|object| object.kind == ObjectKind::Tree);
        for object in trees.into_iter().chain(files).take(killed_after) {
            let folder = if object.kind == ObjectKind::Tree { "trees" } else { "objects" };
            fs::remove_file(object_path(&site.store, folder, object.id))?;
        }
        let site = site.reopen()?;
        match site.store.scrub(tree.object) {
            Ok(()) => assert_eq!(killed_after, 0),
            Err(StoreError::NotFound(id)) => assert_eq!((killed_after > 0, id), (true, tree.object.id)),
            Err(other) => panic!("{other}"),
        }
        // What is left over goes with the next.
        let rest = propose(&site)?;
        assert_eq!(rest.len(), 5 - killed_after);
        assert!(gone(&site, &rest)?.iter().all(|gone| *gone));
        assert_eq!(site.store.stats().objects, 0);
    }
    Ok(())
}

fn pass(store: &SiteStore, bytes: u64) -> Result<Vec<ObjectRef>> {
    let (mut place, mut damaged) = (ScrubPlace::default(), Vec::new());
    loop {
        let scrubbed = store.scrub_some(&place, bytes)?;
        damaged.extend(scrubbed.damaged.into_iter().map(|(object, _)| object));
        match scrubbed.next {
            Some(next) => place = next,
            None => return Ok(damaged),
        }
    }
}

/// Flips a bit and puts the times of the file back: nothing but its bytes tells of it.
fn damage_silently(path: &Path, bit: u64) -> Result<()> {
    let before = fs::metadata(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    let file = fs::File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    let at = (bit / 8) % before.len();
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, at)?;
    file.set_modified(before.modified()?)?;
    fs::set_permissions(path, before.permissions())?;
    Ok(())
}

#[test]
fn d5_a_scrub_finds_each_of_ten_thousand_corruptions_and_nothing_else() -> Result<()> {
    let site = Site::new()?;
    for file in 0..200 {
        let content: Vec<u8> = (0..600u32 + file).flat_map(|word| (word * 7 + file).to_le_bytes()).collect();
        site.write(&format!("all/d{}/f{file}", file % 10), &content)?;
    }
    let tree = site.store.ingest(&site.path("all"))?;
    let sound = site.store.list()?;
    let folder = |object: &ObjectRef| if object.kind == ObjectKind::Tree { "trees" } else { "objects" };
    let copies: Vec<(PathBuf, Vec<u8>)> = sound
        .iter()
        .map(|object| {
            let path = object_path(&site.store, folder(object), object.id);
            let bytes = fs::read(&path)?;
            Ok((path, bytes))
        })
        .collect::<Result<_>>()?;
    let mut found = 0;
    let mut state = 1u64;
    for round in 0..50 {
        let mut hit = Vec::new();
        for object in sound.iter().filter(|object| object.kind == ObjectKind::File).take(200) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            damage_silently(&object_path(&site.store, "objects", object.id), state >> 20)?;
            hit.push(object.id);
        }
        let damaged = pass(&site.store, 100_000)?;
        for id in &hit {
            assert!(damaged.iter().any(|object| object.id == *id), "round {round}: {id} was not found");
        }
        // With its files the tree goes out of use, and is not handed over.
        assert!(damaged.iter().any(|object| object.id == tree.object.id));
        let error = site.store.materialise(&site.path("in"), &Entry::for_value("x", &tree.value)).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
        site.store.take_back(&site.path("in"))?;
        found += hit.len();
        for (path, bytes) in &copies {
            if !path.exists() {
                fs::write(path, bytes)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
            }
        }
        if round == 0 {
            assert!(pass(&site.store, 1 << 20)?.is_empty(), "what is sound was taken for damaged");
        }
    }
    assert_eq!(found, 10_000);
    Ok(())
}

#[test]
fn d5_a_damaged_manifest_takes_the_trees_above_it_out_of_use_and_leaves_the_others() -> Result<()> {
    let site = Site::new()?;
    for path in ["bad/sub/deep/f", "deep/f", "other/f", "other/g"] {
        site.write(path, b"1")?;
    }
    let bad = site.store.ingest(&site.path("bad"))?;
    // One object with the folder of the same content in the other tree.
    let deep = site.store.ingest(&site.path("deep"))?;
    let other = site.store.ingest(&site.path("other"))?;
    damage_silently(&object_path(&site.store, "trees", deep.object.id), 3)?;
    let damaged: Vec<_> = pass(&site.store, 10)?.into_iter().map(|object| object.id).collect();
    assert!(damaged.contains(&bad.object.id) && damaged.contains(&deep.object.id));
    assert!(!site.store.contains(bad.object) && !site.store.contains(deep.object));
    site.store.scrub(other.object)?;
    Ok(())
}

#[test]
fn a_pass_goes_on_where_it_stopped() -> Result<()> {
    let site = Site::new()?;
    for number in 0..20u8 {
        site.store.ingest(&site.write("f", &[number; 1_000])?)?;
    }
    let first = site.store.scrub_some(&ScrubPlace::default(), 5_000)?;
    assert_eq!((first.files, first.bytes), (5, 5_000));
    site.store.remember_scrub(first.next.as_ref())?;
    let site = site.reopen()?;
    let place = site.store.remembered_scrub().unwrap();
    let rest = site.store.scrub_some(&place, u64::MAX)?;
    assert_eq!((rest.files, rest.next), (15, None));
    Ok(())
}
