//! Files of /proc and /sys that hold anything, and recordings that somebody made to do harm.

use margay_observe::{
    Recording, RecordingError, Root, Sample, Sensors, Series, Timeline, What, replay, report,
};
use std::{path::PathBuf, sync::Arc, time::Duration};

const DEVICES: &[&str] = &["adreno-phone", "mali-phone", "jetson-orin", "raspberry-pi-5", "laptop-rapl"];

/// None of these is a number, a share or a list of any kind.
const GARBAGE: &[&[u8]] = &[
    b"",
    b"\n",
    b"garbage",
    b"\xff\xfe\x00\x00",
    b"-",
    b"NaN",
    b"inf",
    b"1e400",
    b"0x",
    b"999999999999999999999999999999",
    b"-999999999999999999999999999999 -1 -1",
    b"((((((((((((",
    b"= = = @ % :",
];

fn recording(device: &str) -> Recording {
    Recording::open(&PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/devices")).join(device))
        .expect("the fixture is a recording")
}

/// Every number that a series says, by the reports' own way of telling it.
fn numbers(series: &Series) -> Vec<f64> {
    fn collect(value: &serde_json::Value, numbers: &mut Vec<f64>) {
        match value {
            serde_json::Value::Number(number) => numbers.extend(number.as_f64()),
            serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, numbers)),
            serde_json::Value::Object(map) => map.values().for_each(|value| collect(value, numbers)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::to_value(&series.samples).expect("samples are JSON"), &mut found);
    found
}

#[test]
fn garbage_in_any_one_file_is_unknown_and_harms_no_other() {
    for device in DEVICES {
        let honest = recording(device);
        let clean = replay(&Arc::new(honest.clone()));
        let paths: Vec<String> = honest.paths().map(str::to_owned).collect();
        let of_clean = numbers(&clean).len();
        assert!(paths.len() > 20, "{device}");
        for path in &paths {
            for garbage in GARBAGE {
                let series = replay(&Arc::new(honest.clone().with_content(path, garbage)));
                assert_eq!(series.samples.len(), clean.samples.len());
                let found = numbers(&series);
                assert!(found.iter().all(|number| number.is_finite()), "{device} {path}");
                // A type or a name may be anything; where it is, other numbers may appear, but not more of one file.
                if !["/type", "/name", "comm", "_label", "/status", "/online", "cgroup"]
                    .iter()
                    .any(|end| path.ends_with(end))
                {
                    assert!(found.len() <= of_clean + clean.samples.len(), "{device} {path}");
                }
            }
        }
    }
}

#[test]
fn garbage_in_every_file_leaves_everything_unknown() {
    for device in DEVICES {
        for garbage in GARBAGE {
            let mut hostile = recording(device);
            let paths: Vec<String> = hostile.paths().map(str::to_owned).collect();
            for path in &paths {
                hostile = hostile.with_content(path, garbage);
            }
            let series = replay(&Arc::new(hostile));
            for sample in &series.samples {
                let known = serde_json::to_value(Sample {
                    at: Duration::ZERO,
                    over: Duration::ZERO,
                    ..sample.clone()
                });
                let mut found = numbers(&Series { samples: vec![sample.clone()], ..Series::default() });
                // When it was taken is ours.
                found.drain(..2);
                assert_eq!(found, [0.0; 0], "{device} {garbage:?}: {known:?}");
            }
            for writer in report::WRITERS {
                writer.write(&Timeline::of_samples("x", series.clone())).unwrap();
            }
        }
    }
}

#[test]
fn a_huge_file_is_read_to_its_cap_only() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("proc/pressure")).unwrap();
    // Sparse: it takes no place, and reading all of it would take 64 GiB of memory.
    for path in ["proc/stat", "proc/meminfo", "proc/pressure/cpu"] {
        std::fs::File::create(folder.path().join(path)).unwrap().set_len(64 << 30).unwrap();
    }
    let root = Root::new(folder.path());
    assert_eq!(root.read("proc/stat").unwrap().len(), 4 << 20);
    let mut sensors = Sensors::probe(&root, &What::default());
    let sample = sensors.sample(&root, Duration::ZERO);
    assert_eq!(sample, Sample::default());
}

#[test]
fn names_from_a_recording_are_text_and_nothing_else() {
    let name = b"<script>alert(1)</script>\"'\x1b[2J";
    let series = replay(&Arc::new(
        recording("adreno-phone").with_content("sys/class/thermal/thermal_zone0/type", name),
    ));
    let page = report::writer("html").unwrap().write(&Timeline::of_samples("a<b", series)).unwrap();
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains('\x1b'));
}

/// Path and content of a file in a tar.
type Entry<'e> = (&'e str, &'e [u8]);

/// A tar file of entries.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        // As the bytes are: the builder itself refuses paths that lead out.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

const ABOUT: (&str, &[u8]) =
    ("recording.json", br#"{"margay_recording":1,"machine":null,"process":null,"period_seconds":0.1}"#);
const MOMENT: (&str, &[u8]) = ("000000/moment.json", br#"{"at_seconds":0.0}"#);

#[test]
fn hostile_tar_files_are_errors_that_say_what_is_wrong() {
    assert!(Recording::from_tar(&tar(&[ABOUT, MOMENT])[..]).is_ok(), "an honest one, to compare");
    let cases: &[(&[Entry<'_>], &str)] = &[
        (&[], "no recording.json"),
        (&[ABOUT], "no sample"),
        (&[MOMENT], "no recording.json"),
        (&[("recording.json", b"{")], "recording.json"),
        (
            &[
                (
                    "recording.json",
                    br#"{"margay_recording":9,"machine":null,"process":null,"period_seconds":0.1}"#,
                ),
                MOMENT,
            ],
            "version is 9",
        ),
        (&[ABOUT, MOMENT, ("000000/../../etc/passwd", b"x")], "no path below a root"),
        (&[ABOUT, MOMENT, ("000000/%2e%2e/x", b"x")], "no path below a root"),
        (&[ABOUT, MOMENT, ("000000//etc/passwd", b"x")], "no path below a root"),
        (&[ABOUT, MOMENT, ("/etc/passwd", b"x")], "lies in no sample"),
        (&[ABOUT, MOMENT, ("000000/a%", b"x")], "no path below a root"),
        (&[ABOUT, MOMENT, ("000000/a", b"x"), ("000000/a", b"y")], "stands twice"),
        (&[ABOUT, MOMENT, ("000002/moment.json", br#"{"at_seconds":1}"#)], "missing or out of order"),
        (&[ABOUT, ("000000/moment.json", br#"{"at_seconds":-1}"#)], "was taken at -1 s"),
        (&[ABOUT, ("000000/moment.json", br#"{"at_seconds":1e300}"#)], "was taken at"),
        (
            &[
                ABOUT,
                ("000000/moment.json", br#"{"at_seconds":2}"#),
                ("000001/moment.json", br#"{"at_seconds":1}"#),
            ],
            "out of order",
        ),
        (&[ABOUT, MOMENT, ("99999999999999999999/x", b"x")], "lies in no sample"),
        (&[ABOUT, MOMENT, ("1000000/x", b"x")], "more samples"),
    ];
    for (entries, expected) in cases {
        let error = Recording::from_tar(&tar(entries)[..]).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn links_and_huge_files_in_a_tar_are_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "000000/proc", "/proc").unwrap();
    let error = Recording::from_tar(&builder.into_inner().unwrap()[..]).unwrap_err();
    assert!(
        matches!(error, RecordingError::Malformed { .. }) && error.to_string().contains("neither a file"),
        "{error}"
    );

    let large = vec![b'1'; (1 << 20) + 1];
    let error = Recording::from_tar(&tar(&[ABOUT, MOMENT, ("000000/proc/stat", &large)])[..]).unwrap_err();
    assert!(matches!(error, RecordingError::TooLarge { .. }), "{error}");

    // A header that claims more than there is, and one whose numbers are broken.
    let mut honest = tar(&[ABOUT, MOMENT]);
    honest[124..135].copy_from_slice(b"77777777777");
    assert!(Recording::from_tar(&honest[..]).is_err());
    assert!(Recording::from_tar(&[0xff; 4096][..]).is_err());
}

#[test]
fn an_endless_tar_ends() {
    /// A valid head of the file, then noughts and ones for ever.
    struct Endless(u64);
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 += buffer.len() as u64;
            assert!(self.0 < 300 << 20, "more than the cap was read");
            buffer.fill(b'1');
            Ok(buffer.len())
        }
    }
    let start = tar(&[ABOUT, MOMENT, ("000000/x", &vec![b'x'; 4096])]);
    // Without the two empty blocks that end an archive.
    let file = std::io::Read::chain(&start[..start.len() - 1024], Endless(0));
    assert!(Recording::from_tar(file).is_err());
}
