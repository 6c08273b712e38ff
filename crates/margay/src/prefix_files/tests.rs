//! What is found in a folder, and what is not.

use super::*;
use std::fs;

const WIDTH: usize = 2;

fn files(folder: &Path, identity: &str) -> PrefixFiles {
    PrefixFiles::new(folder, 1 << 20, identity.to_owned(), WIDTH).unwrap()
}

fn keep(files: &mut PrefixFiles, form: &str, prefix: &Prefix) -> bool {
    let kept = files.pen(form).write(prefix).unwrap();
    if kept {
        files.written(prefix);
    }
    kept
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
    assert!(keep(&mut files(folder.path(), "model"), "f16", &kept));
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
    assert!(keep(&mut own, "f16", &kept));
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
    assert!(keep(&mut files, "f16", &kept));
    for (digest, at) in [(1, 0), (2, 30)] {
        let (rows, seen) = files.picture("f16", &[digest; 32]).unwrap();
        assert_eq!((rows, seen), (kept.rows[at * WIDTH..][..30 * WIDTH].to_vec(), picture(1, 30).seen));
    }
    assert!(files.picture("f16", &[3; 32]).is_none());
    let other = PrefixFiles::new(folder.path(), 1 << 20, "model".to_owned(), WIDTH + 1);
    assert!(other.unwrap().picture("f16", &[1; 32]).is_none(), "rows of another width are no rows");
}

#[test]
fn a_longer_prefix_takes_the_place_of_what_it_goes_on_from_unless_that_is_much_shorter() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(folder.path(), "model");
    let whole = prefix(1, 2);
    let part = |len: usize| Prefix {
        ids: whole.ids[..len].to_vec(),
        pictures: whole.pictures[..1].to_vec(),
        rows: whole.rows[..30 * WIDTH].to_vec(),
        ..prefix(1, 2)
    };
    for len in [69, 80, 100] {
        assert!(keep(&mut files, "f16", &part(len)));
        files.look("f16");
    }
    assert!(keep(&mut files, "f16", &whole));
    files.look("f16");
    let mut there: Vec<usize> = files.known.values().map(|entry| entry.ids.len()).collect();
    there.sort_unstable();
    // Each went when the next came.
    assert_eq!(there, [140]);
    assert!(keep(&mut files, "f16", &part(50)));
    files.look("f16");
    assert!(keep(&mut files, "f16", &whole));
    assert_eq!(files.folder.names("").len(), 2);
}

#[test]
fn any_damage_is_removed_and_never_read() {
    let folder = tempfile::tempdir().unwrap();
    let small = Prefix { ids: (0..8).collect(), pictures: vec![], rows: vec![], cache: vec![5; 16] };
    let mut probe = files(folder.path(), "model");
    assert!(keep(&mut probe, "f16", &small));
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

#[test]
fn what_is_said_of_pictures_has_to_fit_together() {
    let whole = prefix(1, 2);
    for counts in [vec![29], vec![], vec![31], vec![usize::MAX, 31]] {
        let folder = tempfile::tempdir().unwrap();
        let mut forged = prefix(1, 2);
        forged.pictures[1].seen.counts = counts;
        let mut files = files(folder.path(), "model");
        assert!(keep(&mut files, "f16", &forged));
        assert!(files.find("f16", (&whole.ids, &shown(&whole)), (1, 1000)).is_none());
        assert!(files.folder.names("").is_empty());
    }
}

#[test]
fn what_does_not_fit_takes_nothing_elses_place_and_what_is_used_stays() {
    let folder = tempfile::tempdir().unwrap();
    let most = 6000;
    let mut files = PrefixFiles::new(folder.path(), most, "model".to_owned(), WIDTH).unwrap();
    let sized = |words: i32, from: i32, cache: usize| Prefix {
        ids: (from..from + words).collect(),
        pictures: vec![],
        rows: vec![],
        cache: vec![1; cache],
    };
    let (short, long) = (sized(40, 0, 1000), sized(60, 0, most as usize));
    assert!(keep(&mut files, "f16", &short));
    files.look("f16");
    assert!(!keep(&mut files, "f16", &long), "larger than the folder may be");
    let found = |files: &mut PrefixFiles, of: &Prefix| files.find("f16", (&of.ids, &[]), (1, 1000)).is_some();
    assert!(found(&mut files, &short), "what it goes on from is still there");
    // Another is kept, and made old; then both: the one that is in use is the younger.
    let other = sized(40, 500, 1000);
    assert!(keep(&mut files, "f16", &other));
    let age = |path: &Path, hours: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        let then = margay_observe::unix_seconds() - 3600 * hours;
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(then)).unwrap();
    };
    for name in files.folder.names("") {
        age(&files.folder.path(&name), 9);
    }
    assert!(found(&mut files, &short));
    // What a killed process left half written goes, what somebody is at stays, and counts.
    let half = |name: &str, bytes: usize| {
        let path = folder.path().join(name);
        fs::write(&path, vec![0; bytes]).unwrap();
        path
    };
    let (left, busy) = (half(".margay-left.part", 100_000), half(".margay-busy.part", 1000));
    age(&left, 2);
    assert!(keep(&mut files, "f16", &sized(40, 900, 1500)));
    assert!(!left.exists() && busy.exists());
    files.look("f16");
    assert!(found(&mut files, &short) && !found(&mut files, &other));
}
