//! Prompts that another process computed.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::{
    AskOptions, Budget, Content, Event, Eviction, Image, Job, KvType, LoadOptions, Model, PrefixFolder,
    Report, Scheduler, SchedulerOptions, Turn,
    rooms::prompt::image::{ImageLimits, Picture, decode},
};
use std::path::{Path, PathBuf};

const IMAGES: [&str; 2] = ["street.png", "shapes.png"];

fn picture(name: &str) -> Image {
    Image::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images").join(name)).unwrap()
}

/// The same with one level of one colour of its last pixel changed.
fn one_pixel_off(name: &str) -> Image {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images").join(name);
    let whole = decode(&std::fs::read(path).unwrap(), &ImageLimits::default()).unwrap();
    let mut rgb = whole.rgb().to_vec();
    *rgb.last_mut().unwrap() ^= 1;
    Image::from_picture(Picture::new(whole.width(), whole.height(), rgb).unwrap(), name)
}

fn options(folder: Option<&Path>, kv: KvType) -> LoadOptions {
    let prefix_folder = folder.map(|path| PrefixFolder { path: path.to_owned(), most_bytes: 100 << 20 });
    LoadOptions { prefix_folder, kv, ..LoadOptions::default() }
}

/// A model of its own, as another process has it, which is gone when the answer is there.
fn ask(options: &LoadOptions, pictures: &[Image], prompt: &str) -> Report {
    let model = Model::nano_with(options).unwrap();
    let mut session = model.session().unwrap();
    let ask = AskOptions { max_tokens: 12, ..AskOptions::default() };
    session.ask_raw(pictures, prompt, &ask).unwrap().report().unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

const SYSTEM: &str = "One looks at pictures with care, one by one, and says in few words what there is to be seen. Then \
                      one asks what else there may be, and whether it was seen. ";

#[test]
fn a_prompt_is_computed_by_one_process_alone_as_far_as_others_share_it() {
    let pictures = IMAGES.map(picture);
    let whole = format!("{SYSTEM}<image> and <image> What is there?");
    let tokens_of = |prompt: &str| {
        let report = ask(&options(None, KvType::F16), &pictures[..prompt.matches("<image>").count()], prompt);
        report.stages.prefill_tokens
    };
    // Words on either side of a picture are made tokens of apart, so that they are as many whatever stands beyond it.
    let first = tokens_of(&format!("{SYSTEM}<image>"));
    let both = tokens_of(&format!("{SYSTEM}<image> and <image>"));
    // Other processors are emulated in tests, where each type takes a minute; what types differ in has tests of its own.
    let kinds = if cfg!(target_arch = "x86_64") { &KvType::ALL[..] } else { &[KvType::F16] };
    for kv in kinds.iter().copied() {
        let folder = tempfile::tempdir().unwrap();
        let kept = options(Some(folder.path()), kv);
        let plain = options(None, kv);
        let filled = ask(&kept, &pictures, &whole);
        assert_eq!(filled.tokens, ask(&plain, &pictures, &whole).tokens);
        assert_eq!((filled.stages.reused_tokens, files(folder.path()).len()), (0, 1), "{kv:?}");
        let each = filled.stages.visual_tokens / 2;

        let off = [picture(IMAGES[0]), one_pixel_off(IMAGES[1])];
        let swapped = [pictures[1].clone(), pictures[0].clone()];
        let other = whole.replace("whether it", "whether what");
        let cases: [(&str, &[Image], String, std::ops::RangeInclusive<usize>); 6] = [
            ("another question", &pictures, whole.replace("What is there?", "How many?"), both..=both),
            ("a changed pixel in the second", &off, whole.clone(), both - each..=both - each),
            ("pictures that changed places", &swapped, whole.clone(), first - each..=first - each),
            ("the second taken away", &pictures[..1], format!("{SYSTEM}<image> and What?"), first..=both - 1),
            ("another text in front", &pictures, other, 32..=first - each - 1),
            (
                "nothing alike",
                &[],
                "Something else altogether is asked here, and it is long enough.".to_owned(),
                0..=0,
            ),
        ];
        for (what, pictures, prompt, reused) in cases {
            let copy = tempfile::tempdir().unwrap();
            for file in files(folder.path()) {
                std::fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
            }
            let got = ask(&options(Some(copy.path()), kv), pictures, &prompt);
            let fresh = ask(&plain, pictures, &prompt);
            assert!(reused.contains(&got.stages.reused_tokens), "{kv:?} {what}: {:?}", got.stages);
            let all = got.stages.reused_tokens + got.stages.prefill_tokens;
            assert_eq!(all, fresh.stages.prefill_tokens, "{kv:?} {what}");
            // What a block becomes in two bits depends on how the prompt was cut into runs.
            if kv != KvType::Kivi2 {
                assert_eq!(got.tokens, fresh.tokens, "{kv:?} {what}");
            }
        }
        // Another type of keys and values is another folder, as it were.
        let other = if kv == KvType::F16 { KvType::F32 } else { KvType::F16 };
        assert_eq!(ask(&options(Some(folder.path()), other), &pictures, &whole).stages.reused_tokens, 0);
    }
}

#[test]
fn a_picture_of_a_kept_prompt_is_not_encoded_again_even_where_it_stands_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let kept = options(Some(folder.path()), KvType::F16);
    let pictures = IMAGES.map(picture);
    ask(&kept, &pictures, &format!("{SYSTEM}<image> and <image> What is there?"));
    let alone = ask(&kept, &pictures[1..], "<image> What is there?");
    assert_eq!((alone.stages.reused_pictures, alone.stages.encode_ms), (1, None));
    let fresh = ask(&options(None, KvType::F16), &pictures[1..], "<image> What is there?");
    assert_eq!((alone.tokens, alone.stages.visual_tokens), (fresh.tokens, fresh.stages.visual_tokens));
}

#[test]
fn a_damaged_file_is_removed_and_its_prompt_computed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let kept = options(Some(folder.path()), KvType::F16);
    let pictures = [picture(IMAGES[0])];
    let prompt = format!("{SYSTEM}<image> What is there?");
    let expected = ask(&kept, &pictures, &prompt);
    let file = files(folder.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    for at in [whole.len() - 1, whole.len() / 2, 9] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        std::fs::write(&file, &damaged).unwrap();
        let again = ask(&kept, &pictures, &prompt);
        assert_eq!((again.stages.reused_tokens, again.tokens), (0, expected.tokens.clone()), "byte {at}");
        assert_eq!(std::fs::read(&file).unwrap(), whole, "it is kept again");
    }
}

#[test]
fn short_prompts_and_what_is_there_already_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let kept = options(Some(folder.path()), KvType::F16);
    ask(&kept, &[], "Short.");
    assert!(files(folder.path()).is_empty());
    let long = SYSTEM.repeat(3);
    ask(&kept, &[], &long);
    let names = files(folder.path());
    assert_eq!(names.len(), 1);
    // A few words more are not worth a file of their own.
    let more = ask(&kept, &[], &format!("{long} And so on."));
    assert!(more.stages.reused_tokens > 40, "{:?}", more.stages);
    assert_eq!(files(folder.path()), names);
}

/// A folder that is gone, as a disk that is full, ends no answer.
#[test]
fn a_folder_that_can_no_longer_be_written_is_noted_once_and_answers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixes");
    let model = Model::nano_with(&options(Some(&path), KvType::F16)).unwrap();
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "no folder").unwrap();
    let mut session = model.session().unwrap();
    let ask = AskOptions { max_tokens: 4, ..AskOptions::default() };
    for _ in 0..2 {
        let report = session.ask_raw(&[picture(IMAGES[0])], &format!("{SYSTEM}<image>"), &ask).unwrap();
        assert!(!report.report().unwrap().tokens.is_empty());
        let notes = model.notes().unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("no longer kept") && notes[0].contains("prefixes"), "{notes:?}");
    }
    let file = options(Some(&path.join("within a file")), KvType::F16);
    assert!(Model::nano_with(&file).is_err());
}

#[test]
fn callers_of_a_scheduler_go_on_from_what_another_process_kept() {
    let folder = tempfile::tempdir().unwrap();
    let kept = options(Some(folder.path()), KvType::F16);
    let turn = |text: &str| Turn {
        role: "user".to_owned(),
        content: vec![Content::Image(picture(IMAGES[0])), Content::Text(text.to_owned())],
    };
    let asked = |options: &LoadOptions, text: &str| {
        let model = Model::nano_with(options).unwrap();
        let scheduler = Scheduler::new(model, SchedulerOptions::default()).unwrap();
        let (told, events) = std::sync::mpsc::channel();
        let options = AskOptions { max_tokens: 8, ..AskOptions::default() };
        let job = Job { turns: vec![turn(text)], options };
        scheduler.submit(job, Box::new(move |event| told.send(event).is_ok())).unwrap();
        let report = events.iter().find_map(|event| match event.unwrap() {
            Event::Done(report) => Some(*report),
            _ => None,
        });
        report.unwrap()
    };
    let first = asked(&kept, "What is in the picture?");
    let second = asked(&kept, "How many shapes are there?");
    assert_eq!(first.stages.reused_tokens, 0);
    assert!(second.stages.reused_tokens >= second.stages.visual_tokens, "{:?}", second.stages);
    assert_eq!((second.stages.reused_pictures, second.stages.encode_ms), (1, None));
    let fresh = asked(&options(None, KvType::F16), "How many shapes are there?");
    assert_eq!(second.tokens, fresh.tokens);
}

#[test]
fn what_cannot_go_with_kept_prompts_is_refused_with_what_to_leave_out() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |options: LoadOptions| Model::nano_with(&options).err().unwrap().to_string();
    let kept = || options(Some(folder.path()), KvType::F16);
    let budget = Budget::Tokens(33);
    for eviction in [Eviction::SnapKv(budget), Eviction::H2o(budget)] {
        let told = refused(LoadOptions { eviction: Some(eviction), ..kept() });
        assert!(told.contains("--evict"), "{told}");
    }
    #[cfg(feature = "reference")]
    {
        let told = refused(LoadOptions { backend: "reference".to_owned(), ..kept() });
        assert!(told.contains("use the cpu backend"), "{told}");
    }
    let window = Eviction::Window { window: 100, sinks: 4 };
    assert!(Model::nano_with(&LoadOptions { eviction: Some(window), ..kept() }).is_ok());
}
