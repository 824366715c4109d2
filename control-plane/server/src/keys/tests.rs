#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn key_id(project: &str, number: u32) -> KeyId {
    KeyId { project: project.into(), number }
}

fn config(directory: &Path) -> Config {
    Config { data_dir: directory.to_owned(), ..Config::default() }
}

#[test]
fn a_project_key_is_opened_by_the_master_key_that_wrapped_it_and_in_its_own_place_only() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Keys::open(&config(directory.path())).unwrap();
    let mode = std::fs::metadata(directory.path().join("master.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let made = ProjectKey::random();
    let wrapped = keys.0.master.wrap(&key_id("a", 1), &made);
    assert!(!wrapped.bytes().windows(KEY_BYTES).any(|part| part == made.secret()));
    assert_ne!(keys.0.master.wrap(&key_id("a", 1), &made), wrapped, "each time in another way");

    // Read again, by the next process.
    let keys = Keys::open(&config(directory.path())).unwrap();
    assert_eq!(keys.project_key(&key_id("a", 1), &wrapped).unwrap().secret(), made.secret());
    for elsewhere in [key_id("a", 2), key_id("b", 1)] {
        assert!(matches!(keys.project_key(&elsewhere, &wrapped), Err(KeyError::Damaged(_))));
    }
    for place in 0..wrapped.bytes().len() {
        let mut bytes = wrapped.bytes().to_vec();
        bytes[place] ^= 1;
        let fresh = Keys::open(&config(directory.path())).unwrap();
        assert!(fresh.project_key(&key_id("a", 1), &WrappedKey::new(&bytes)).is_err(), "byte {place}");
    }
    assert!(keys.project_key(&key_id("c", 1), &WrappedKey::new(&[])).is_err());
}

#[test]
fn another_master_key_is_told_by_its_name_and_the_retired_one_opens_what_it_wrapped() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = ProjectKey::random();
    let id = key_id("a", 1);
    let wrapped = Keys::open(&config(old.path())).unwrap().0.master.wrap(&id, &made);
    let keys = Keys::open(&config(new.path())).unwrap();
    let error = keys.project_key(&id, &wrapped).unwrap_err();
    assert!(matches!(error, KeyError::OtherMaster { .. }), "{error}");
    assert!(error.to_string().contains("master.key"), "{error}");
    let retired = Config { retired_master_key_file: Some(old.path().join("master.key")), ..config(new.path()) };
    let keys = Keys::open(&retired).unwrap();
    assert_eq!(keys.project_key(&id, &wrapped).unwrap().secret(), made.secret());
    let anew = keys.0.master.wrap(&id, &made);
    let keys = Keys::open(&config(new.path())).unwrap();
    assert_eq!(keys.project_key(&id, &anew).unwrap().secret(), made.secret());
}

#[test]
fn a_master_key_that_is_no_key_or_that_everybody_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mine");
    let named = Config { master_key_file: Some(path.clone()), ..config(directory.path()) };
    assert!(matches!(Keys::open(&named), Err(KeyError::File { .. })), "it is not made where an operator has his own");
    key_file::write(&path, b"short", 0o600).unwrap();
    assert!(matches!(Keys::open(&named), Err(KeyError::Length(_))));
    key_file::write(&path, &[7; KEY_BYTES], 0o644).unwrap();
    assert!(matches!(Keys::open(&named), Err(KeyError::Open(_))));
    key_file::write(&path, &[7; KEY_BYTES], 0o400).unwrap();
    let keys = Keys::open(&named).unwrap();
    let shown = format!("{keys:?}");
    assert!(shown.contains("mine") && !shown.contains("7, 7"), "{shown}");
}
