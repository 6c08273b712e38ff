//! What is found in a folder, and what is not.

use super::*;
use std::fs;

const WIDTH: usize = 2;

fn files(folder: &Path, identity: &str) -> PrefixFiles {
    PrefixFiles::new(folder, 1 << 20, identity.to_owned()).unwrap()
}

fn picture(digest: u8, tokens: usize) -> Picture {
    Picture { digest: [digest; 32], tokens, seen: Seen { counts: vec![tokens], ..Seen::default() } }
}

/// 40 words, a picture of 30 visual tokens, 40 words, another picture.
fn prefix(first: u8, second: u8) -> Prefix {
    let words = |from: i32| from..from + 40;
    let ids =
        words(0).chain((0..30).map(|row| -1 - row)).chain(words(100)).chain((30..60).map(|row| -1 - row));
    let rows = (0..60 * WIDTH).map(|at| at as f32 + f32::from(first)).collect();
    let pictures = vec![picture(first, 30), picture(second, 30)];
    Prefix { ids: ids.collect(), pictures, rows, cache: vec![first; 300] }
}

fn shown(prefix: &Prefix) -> Vec<(ImageDigest, usize)> {
    prefix.pictures.iter().map(|picture| (picture.digest, picture.tokens)).collect()
}

#[test]
fn exactly_what_a_prompt_shares_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let kept = prefix(1, 2);
    files(folder.path(), "model").keep("f16", &kept).unwrap();
    let mut files = files(folder.path(), "model");
    let mut found = |ids: &[i32], pictures: &[(ImageDigest, usize)]| {
        let found = files.find("f16", (ids, pictures), (1, 1000));
        assert_eq!(files.covered("f16", ids, pictures), found.as_ref().map_or(0, |found| found.shared));
        found.map_or(0, |found| {
            assert_eq!((&found.ids, found.cache().unwrap().bytes()), (&kept.ids, &kept.cache[..]));
            found.shared
        })
    };
    assert_eq!(found(&kept.ids, &shown(&kept)), 140);
    let longer = [&kept.ids[..], &[7, 8]].concat();
    assert_eq!(found(&longer, &shown(&kept)), 140);
    // Every token that differs, wherever it stands.
    for at in 0..kept.ids.len() {
        let mut other = kept.ids.clone();
        other[at] = 999;
        assert_eq!(found(&other, &shown(&kept)), at);
    }
    // The second picture is another, the first is, they changed places, one is missing, one has fewer tokens.
    assert_eq!(found(&kept.ids, &shown(&prefix(1, 3))), 110);
    assert_eq!(found(&kept.ids, &shown(&prefix(3, 2))), 40);
    assert_eq!(found(&kept.ids, &shown(&prefix(2, 1))), 40);
    assert_eq!(found(&kept.ids, &shown(&kept)[..1]), 110);
    assert_eq!(found(&kept.ids, &[([1; 32], 29), ([2; 32], 30)]), 40);
    assert_eq!(found(&[], &[]), 0);
}

#[test]
fn another_model_and_another_form_find_nothing_and_bounds_hold() {
    let folder = tempfile::tempdir().unwrap();
    let kept = prefix(1, 2);
    let mut own = files(folder.path(), "model");
    own.keep("f16", &kept).unwrap();
    let asked = shown(&kept);
    let found = |files: &mut PrefixFiles, form: &str, bounds| {
        files.find(form, (&kept.ids, &asked), bounds).map(|found| found.shared)
    };
    assert_eq!(found(&mut own, "f16", (140, 140)), Some(140));
    assert_eq!((found(&mut own, "f16", (141, 200)), found(&mut own, "f16", (1, 139))), (None, None));
    assert_eq!(found(&mut own, "q8", (1, 1000)), None);
    assert_eq!(found(&mut files(folder.path(), "other"), "f16", (1, 1000)), None);
}

#[test]
fn rows_of_each_picture_are_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let kept = prefix(1, 2);
    let mut files = files(folder.path(), "model");
    files.keep("f16", &kept).unwrap();
    for (digest, at) in [(1, 0), (2, 30)] {
        let (rows, seen) = files.picture("f16", &[digest; 32], WIDTH).unwrap();
        assert_eq!((rows, seen), (kept.rows[at * WIDTH..][..30 * WIDTH].to_vec(), picture(1, 30).seen));
    }
    assert!(files.picture("f16", &[3; 32], WIDTH).is_none());
    assert!(
        files.picture("f16", &[1; 32], usize::MAX / 100).is_none(),
        "rows of another width are not there"
    );
}

#[test]
fn a_longer_prefix_takes_the_place_of_what_it_goes_on_from_unless_that_is_much_shorter() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), "model");
    let whole = prefix(1, 2);
    let part = |len: usize| Prefix {
        ids: whole.ids[..len].to_vec(),
        pictures: whole.pictures[..1].to_vec(),
        ..prefix(1, 2)
    };
    for len in [69, 80, 100] {
        files.keep("f16", &part(len)).unwrap();
        files.look("f16");
    }
    files.keep("f16", &whole).unwrap();
    files.look("f16");
    let mut there: Vec<usize> = files.known.values().map(|entry| entry.ids.len()).collect();
    there.sort_unstable();
    // Each went when the next came.
    assert_eq!(there, [140]);
    files.keep("f16", &part(50)).unwrap();
    files.look("f16");
    files.keep("f16", &whole).unwrap();
    assert_eq!(files.folder.names("").len(), 2);
}

#[test]
fn any_damage_is_removed_and_never_read() {
    let folder = tempfile::tempdir().unwrap();
    let small = Prefix { ids: (0..8).collect(), pictures: vec![], rows: vec![], cache: vec![5; 16] };
    let mut probe = files(folder.path(), "model");
    probe.keep("f16", &small).unwrap();
    let name = probe.folder.names("").remove(0);
    let path = probe.folder.path(&name);
    let whole = fs::read(&path).unwrap();
    let mut found = 0;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        match files(folder.path(), "model").find("f16", (&small.ids, &[]), (0, 100)) {
            // A space among the file's padding is the only thing that nothing depends on.
            Some(whole) => {
                assert_eq!(
                    (whole.shared, whole.cache().unwrap().bytes()),
                    (8, &small.cache[..]),
                    "byte {at}"
                );
                found += 1;
            }
            None => assert!(!path.exists(), "byte {at}"),
        }
    }
    assert!(found < 9, "{found} of {} bytes count for nothing", whole.len());
    for len in [0, 1, 8, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(files(folder.path(), "model").find("f16", (&small.ids, &[]), (1, 100)).is_none());
        assert!(!path.exists(), "{len} bytes");
    }
}
