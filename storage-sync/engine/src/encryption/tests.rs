use atoll_model::id::ObjectId;
use atoll_model::value::{ObjectKind, ObjectRef};
use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

const CHUNK: usize = CHUNK_BYTES as usize;
const SEALED: usize = (CHUNK_BYTES + TAG_BYTES) as usize;
const HEADER: usize = HEADER_BYTES as usize;

fn object(kind: ObjectKind) -> ObjectRef {
    ObjectRef { id: ObjectId::from_digest([3; 32]), kind, bytes: 5 }
}

fn key() -> ObjectKey {
    ProjectKey::new([7; 32]).object_key(object(ObjectKind::File))
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn encrypt(header: Header, bytes: &[u8], step: usize) -> Vec<u8> {
    let mut encrypting = Encrypting::new(&key(), header);
    let mut out = BytesMut::new();
    bytes.chunks(step.max(1)).for_each(|piece| encrypting.push(piece, &mut out));
    encrypting.finish(&mut out);
    out.to_vec()
}

fn decrypt(
    encrypted: &[u8],
    stream_bytes: usize,
    range: std::ops::Range<usize>,
    step: usize,
) -> Result<Vec<u8>, Tampered> {
    let stream_key = key().stream_key(&Header::read(encrypted));
    let mut reader = RangeReader::new(&stream_key, stream_bytes as u64, range.start as u64..range.end as u64);
    let within = reader.encrypted_range();
    let mut opened = Vec::new();
    let there = encrypted.get(within.start as usize..(within.end as usize).min(encrypted.len())).unwrap_or_default();
    for mut piece in there.chunks(step.max(1)) {
        while let Some(bytes) = reader.next(&mut piece)? {
            opened.extend_from_slice(bytes);
        }
        assert!(piece.is_empty(), "no more was asked for than is needed");
    }
    Ok(opened)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_stream_comes_out_as_it_went_in(
        length in prop_oneof![1usize..200, (1usize..5, -2i64..3).prop_map(|(chunks, off)| (chunks as i64 * CHUNK_BYTES as i64 + off) as usize)],
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        steps in (1usize..100_000, 1usize..100_000),
    ) {
        let bytes = noise(length);
        let encrypted = encrypt(Header::random(), &bytes, steps.0.max(1_000));
        prop_assert_eq!(encrypted.len() as u64, encrypted_bytes(length as u64));
        prop_assert_eq!(stream_bytes(encrypted.len() as u64), Some(length as u64));
        let (a, b) = (from.index(length), to.index(length));
        let range = a.min(b)..a.max(b) + 1;
        prop_assert_eq!(decrypt(&encrypted, length, range.clone(), steps.1.max(1_000)), Ok(bytes[range].to_vec()));
    }

    #[test]
    fn lengths_that_no_stream_has_are_told_from_those_that_one_has(encrypted in 0u64..400_000) {
        if let Some(bytes) = stream_bytes(encrypted) {
            prop_assert_eq!(encrypted_bytes(bytes), encrypted);
        }
    }
}

#[test]
fn a_stream_of_nothing_has_a_chunk_all_the_same() {
    let encrypted = encrypt(Header::random(), &[], 1);
    assert_eq!(encrypted.len() as u64, encrypted_bytes(0));
    assert_eq!(stream_bytes(encrypted_bytes(0)), Some(0));
    assert_eq!(stream_bytes(HEADER_BYTES), None);
    assert_eq!(stream_bytes(0), None);
    assert_eq!(stream_bytes(encrypted_bytes(CHUNK_BYTES) + TAG_BYTES), None, "no chunk after the last is empty");
}

#[test]
fn a_bit_that_changed_is_found_wherever_it_is() {
    let bytes = noise(2 * CHUNK + 100);
    let encrypted = encrypt(Header::random(), &bytes, CHUNK);
    let places = (0..HEADER).chain((HEADER..encrypted.len()).step_by(997)).chain([encrypted.len() - 1]);
    for place in places {
        let mut changed = encrypted.clone();
        changed[place] ^= 1 << (place % 8);
        let found = decrypt(&changed, bytes.len(), 0..bytes.len(), CHUNK).expect_err("it does not open");
        assert_eq!(found.chunk, place.saturating_sub(HEADER) as u64 / SEALED as u64, "byte {place}");
    }
}

#[test]
fn chunks_that_were_swapped_repeated_left_out_or_cut_off_do_not_open() {
    let bytes = noise(3 * CHUNK);
    let encrypted = encrypt(Header::random(), &bytes, CHUNK);
    let chunk = |index: usize| &encrypted[HEADER + index * SEALED..HEADER + (index + 1) * SEALED];
    let made_of = |order: &[usize]| {
        let chunks = order.iter().flat_map(|index| chunk(*index).iter().copied());
        encrypted[..HEADER].iter().copied().chain(chunks).collect::<Vec<_>>()
    };
    let open = |encrypted: Vec<u8>, length| decrypt(&encrypted, length, 0..length, SEALED);
    assert_eq!(open(made_of(&[0, 1, 2]), 3 * CHUNK), Ok(bytes));
    assert_eq!(open(made_of(&[1, 0, 2]), 3 * CHUNK), Err(Tampered { chunk: 0 }));
    assert_eq!(open(made_of(&[0, 0, 2]), 3 * CHUNK), Err(Tampered { chunk: 1 }));
    assert_eq!(open(made_of(&[0, 2]), 2 * CHUNK), Err(Tampered { chunk: 1 }));
    assert_eq!(open(made_of(&[0, 1]), 2 * CHUNK), Err(Tampered { chunk: 1 }), "the last says that it is the last");
    assert_eq!(open(made_of(&[0, 1, 2, 2]), 4 * CHUNK), Err(Tampered { chunk: 2 }));
}

#[test]
fn what_belongs_to_another_upload_object_or_key_does_not_open() {
    let bytes = noise(2 * CHUNK);
    let (one, other) = (encrypt(Header::random(), &bytes, CHUNK), encrypt(Header::random(), &bytes, CHUNK));
    assert!((HEADER..one.len()).step_by(SEALED).all(|at| one[at..at + 64] != other[at..at + 64]));
    let mixed: Vec<u8> = one[..HEADER + SEALED].iter().chain(&other[HEADER + SEALED..]).copied().collect();
    assert_eq!(decrypt(&mixed, bytes.len(), 0..bytes.len(), SEALED), Err(Tampered { chunk: 1 }));

    let project = ProjectKey::new([7; 32]);
    let others = [
        ProjectKey::new([8; 32]).object_key(object(ObjectKind::File)),
        project.object_key(object(ObjectKind::Tree)),
        project.object_key(ObjectRef { id: ObjectId::from_digest([4; 32]), ..object(ObjectKind::File) }),
    ];
    for wrong in others {
        let mut reader = RangeReader::new(&wrong.stream_key(&Header::read(&one)), bytes.len() as u64, 0..10);
        assert_eq!(reader.next(&mut &one[HEADER..]), Err(Tampered { chunk: 0 }));
    }
}

#[test]
fn names_in_the_bucket_differ_by_project_and_object_and_are_always_the_same() {
    let (one, other) = (ProjectKey::new([7; 32]), ProjectKey::new([8; 32]));
    let file = object(ObjectKind::File);
    assert_eq!(one.name(file), ProjectKey::new([7; 32]).name(file));
    assert_ne!(one.name(file), other.name(file));
    assert_ne!(one.name(file), one.name(object(ObjectKind::Tree)));
    assert_ne!(one.name(file), *file.id.digest());
    assert_ne!(one.name(file), *one.object_key(file).secret());
}

#[test]
fn keys_are_not_shown() {
    let project = ProjectKey::new([0xab; 32]);
    let object_key = project.object_key(object(ObjectKind::File));
    let encrypting = Encrypting::new(&object_key, Header::random());
    let shown = format!("{project:?} {object_key:?} {encrypting:?} {:?}", object_key.stream_key(&Header::random()));
    assert_eq!(shown, "ProjectKey { .. } ObjectKey { .. } Encrypting { chunk: 0, .. } StreamKey { .. }");
}
