use super::*;
use crate::{AskOptions, Error, LoadOptions};
use margay_prompt::image::Picture;
use std::path::Path;

/// A square that stands still but for every `every`-th frame, in front of a plain ground.
fn frame(at: usize, every: usize) -> Image {
    let step = (at / every * 9 % 64) as u32;
    let inside = |x: u32, y: u32| x.wrapping_sub(step) < 24 && y.wrapping_sub(30) < 24;
    // Noise of two levels, which is no change.
    let noise = |i: u32| ((i as usize * 7 + at * 13) % 3) as u8;
    let pixel =
        |i: u32| if inside(i % 96, i / 96) { [200, 30, 30 + noise(i)] } else { [120, 140, 150 + noise(i)] };
    Image::from_picture(Picture::new(96, 96, (0..96 * 96).flat_map(pixel).collect()).unwrap(), "frame")
}

fn clip(options: ClipOptions) -> Clip {
    Clip::new(&Model::nano().unwrap(), options, Cancel::new()).unwrap()
}

#[test]
fn only_frames_that_change_are_encoded_and_memory_does_not_grow() {
    let mut clip = clip(ClipOptions { most_frames: 6, ..ClipOptions::default() });
    let mut most = 0;
    for at in 0..400 {
        let looked = clip.push(&frame(at, 20)).unwrap();
        assert_eq!(looked == Looked::Kept, at % 20 == 0, "{at}");
        most = most.max(clip.report().bytes);
    }
    let report = clip.report();
    assert_eq!((report.frames, report.still, report.encoded, report.held), (400, 380, 20, 6));
    // Nine tokens of 192 numbers each: a row of 8 bits is 204 bytes, one of differences 108.
    assert_eq!(report.tokens, 6 * 9);
    assert!(report.bytes <= most && most <= 9 * (2 * 204 + 6 * 204), "{report:?}, {most}");
    // Twice as many frames take as much.
    (400..800).for_each(|at| _ = clip.push(&frame(at, 20)).unwrap());
    assert!(clip.report().bytes <= most);
}

#[test]
fn a_frame_that_is_kept_whole_and_unpooled_is_the_picture() {
    let mut clip = clip(ClipOptions { pool: 1, ..ClipOptions::default() });
    clip.push(&frame(0, 1)).unwrap();
    let rows = clip.rows(&clip.held[0]).unwrap();
    let model = Model::nano().unwrap();
    let mut session = model.session().unwrap();
    let ask = AskOptions { max_tokens: 6, ..AskOptions::default() };
    let shown = session.ask_with(&[frame(0, 1)], "What color is it?", &ask).unwrap().report().unwrap();
    let most = session.visual.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let off = rows.iter().zip(&session.visual).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    // Half a step of 8 bits.
    assert!(rows.len() == session.visual.len() && off <= most * 0.6 / 127.0, "{off} of {most}");

    let mut session = model.session().unwrap();
    let (answer, frames) = session.ask_clip(&clip, "What color is it?", &ask).unwrap();
    let told = answer.report().unwrap();
    assert_eq!((frames, told.stages.visual_tokens, told.text), (1, 36, shown.text));
    // The conversation goes on about it.
    let next = session.ask_with(&[], "What shape is it?", &ask).unwrap().report().unwrap();
    assert!(next.stages.reused_tokens >= told.stages.prefill_tokens && next.stages.encode_ms.is_none());
}

#[test]
fn the_newest_frames_stay_where_the_context_is_short() {
    let options = LoadOptions { context: Some(80), ..LoadOptions::default() };
    let model = Model::nano_with(&options).unwrap();
    let mut clip = Clip::new(&model, ClipOptions::default(), Cancel::new()).unwrap();
    (0..12).for_each(|at| _ = clip.push(&frame(at, 1)).unwrap());
    let mut session = model.session().unwrap();
    let ask = AskOptions { max_tokens: 2, ..AskOptions::default() };
    let (answer, frames) = session.ask_clip(&clip, "What is it?", &ask).unwrap();
    assert!(answer.report().is_ok());
    assert!((1..12).contains(&frames), "{frames}");
    assert_eq!(session.digests.last(), Some(&clip.held[11].digest));
    assert!(matches!(
        model.session().unwrap().ask_clip(&clip, &"word ".repeat(90), &ask),
        Err(Error::PromptTooLong { .. })
    ));
}

#[test]
fn spaces_of_tokens_become_means() {
    let tokens: Vec<f32> = (0..15).map(|i| i as f32).collect();
    let mut out = vec![];
    pool(&tokens, 1, 5, 2, &mut out);
    assert_eq!(out, [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]);
    out.clear();
    pool(&tokens, 1, 5, 1, &mut out);
    assert_eq!(out, tokens);
}

#[test]
fn a_folder_is_read_in_order_and_what_is_none_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llava/wide.png");
    for at in [1, 2, 9, 10, 11] {
        std::fs::copy(&golden, folder.path().join(format!("f{at}.png"))).unwrap();
    }
    let options = FramesOptions { every: 2, ..FramesOptions::default() };
    let frames = Frames::open(folder.path(), &options).unwrap();
    let names: Vec<_> =
        frames.map(|frame| frame.unwrap().name.rsplit_once('f').unwrap().1.to_owned()).collect();
    assert_eq!(names, ["1.png", "9.png", "11.png"]);
    let refused =
        |path: &Path, options: FramesOptions| Frames::open(path, &options).err().unwrap().to_string();
    let fps = FramesOptions { fps: Some(2.0), ..FramesOptions::default() };
    assert!(refused(folder.path(), fps).contains("--every"));
    assert!(refused(&folder.path().join("none"), FramesOptions::default()).contains("none"));
    let absent = FramesOptions { ffmpeg: "/no/such/ffmpeg".into(), ..FramesOptions::default() };
    // An emulated system tells only at the end that there is no such program.
    let told = match Frames::open(&golden, &absent) {
        Err(e) => e.to_string(),
        Ok(mut frames) => frames.next().unwrap().err().unwrap().to_string(),
    };
    assert!(told.contains("MARGAY_FFMPEG"), "{told}");
}

/// A program that stands for ffmpeg: it writes what a file beside it says.
#[cfg(unix)]
#[test]
fn what_comes_through_a_pipe_is_frames_or_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("ffmpeg");
    let told = |script: &str| {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = FramesOptions { ffmpeg: program.clone(), every: 2, ..FramesOptions::default() };
        // A child that another test starts may hold the program open for writing between its fork and its exec.
        let mut frames = Frames::open(&program, &options);
        for _ in 0..50 {
            if frames.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            frames = Frames::open(&program, &options);
        }
        let frames = frames.unwrap();
        frames.collect::<Vec<_>>()
    };
    let frame = "printf 'P6\\n2 1\\n255\\nabcdef'";
    let frames = told(&format!("{frame}; {frame}; {frame}"));
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|frame| frame.as_ref().unwrap().picture().unwrap().rgb() == b"abcdef"));
    for (script, why) in [
        ("echo broken >&2; exit 1", "broken"),
        ("true", "no frames"),
        ("exit 127", "MARGAY_FFMPEG"),
        ("printf 'P6\\n2 1\\n255\\nabc'", "cut off"),
        ("printf 'P6\\n99999 99999\\n255\\n'", "more than"),
        ("printf 'P5\\n2 1\\n255\\nabcdef'", "P5"),
        ("yes | tr -d '\\n' | head -c 500", "no frame"),
    ] {
        let frames = told(script);
        let error = frames.last().unwrap().as_ref().err().unwrap_or_else(|| panic!("{script}")).to_string();
        assert!(error.contains(why), "{script}: {error}");
        assert_eq!(frames.iter().filter(|frame| frame.is_err()).count(), 1);
    }
    let frames = told(&format!("{frame}; echo torn >&2; exit 3"));
    assert!(frames[0].is_ok() && frames[1].as_ref().unwrap_err().to_string().contains("torn"));
}

#[test]
fn a_frame_that_was_pooled_is_not_taken_for_the_picture() {
    let mut clip = clip(ClipOptions::default());
    clip.push(&frame(0, 1)).unwrap();
    let mut session = clip.model.session().unwrap();
    let ask = AskOptions { max_tokens: 2, ..AskOptions::default() };
    session.ask_clip(&clip, "What color is it?", &ask).unwrap().0.report().unwrap();
    let content =
        vec![crate::Content::Image(frame(0, 1)), crate::Content::Text("What color is it?".to_owned())];
    let turns = [crate::Turn { role: "user".to_owned(), content }];
    let report = session.ask_turns(&turns, &ask).unwrap().report().unwrap();
    assert_eq!((report.stages.reused_pictures, report.stages.visual_tokens), (0, 36));
}

fn changing(folder: &Path, changed_patches: bool, key_every: usize) -> Clip {
    let options = LoadOptions { changed_patches, ..LoadOptions::default() };
    let model = Model::load_with(folder, &options).unwrap();
    let options = ClipOptions { pool: 1, key_every, least_change: 0.0, ..ClipOptions::default() };
    Clip::new(&model, options, Cancel::new()).unwrap()
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// A plain ground with a square of `side` pixels at `x`, `y`, as large as the tower of the model sees.
fn square(clip: &Clip, (x, y): (u32, u32), side: u32) -> Image {
    let size = clip.model.vision().unwrap().image.size.0;
    let inside = |px: u32, py: u32| px.wrapping_sub(x) < side && py.wrapping_sub(y) < side;
    let pixel =
        |i: u32| if inside(i % size, i / size) { [230, 20, 90] } else { [90, 100, (i % 7) as u8 * 9] };
    let rgb = (0..size * size).flat_map(pixel).collect();
    Image::from_picture(Picture::new(size, size, rgb).unwrap(), "square")
}

#[test]
fn frames_encoded_whole_are_those_of_the_plain_tower_to_the_bit() {
    for name in ["llava", "mobilevlm-v2", "smolvlm"] {
        // Every frame is a whole one.
        let (mut plain, mut changing) = (changing(&golden(name), false, 1), changing(&golden(name), true, 1));
        for x in [0, 5] {
            let frame = square(&plain, (x, 3), 9);
            let (seen, layout) = plain.look(&frame).unwrap();
            let (by_changes, same_layout) = changing.look(&frame).unwrap();
            assert_eq!((&seen, layout), (&by_changes, same_layout), "{name} {x}");
            // A picture that is no frame is seen as ever.
            let ask = AskOptions { max_tokens: 2, ..AskOptions::default() };
            let mut session = changing.model.session().unwrap();
            session.ask_with(&[frame], "one", &ask).unwrap().report().unwrap();
            assert_eq!(session.visual, seen, "{name} {x}");
        }
        let report = changing.report;
        assert_eq!((report.patches, plain.report.patches), (report.of_patches, report.of_patches));
    }
}

#[test]
fn of_one_block_the_patches_that_changed_are_exact_and_the_others_stay() {
    // The golden model whose features are those behind its first block.
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden("llava")).unwrap().map(Result::unwrap).filter(|f| f.path().is_file())
    {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let shallow = text.replace("\"mm_vision_select_layer\": -2", "\"mm_vision_select_layer\": -3");
    assert_ne!(text, shallow);
    std::fs::write(&config, shallow).unwrap();

    let (mut plain, mut clip) = (changing(folder.path(), false, 8), changing(folder.path(), true, 8));
    let patch = plain.model.vision().unwrap();
    let (side, grid) = (patch.image.size.0 / patch.tower.grid() as u32, patch.tower.grid());
    let width = plain.model.config().text.width;
    // A square that is one patch, and then goes to the next.
    let frames = [(0, 0), (side, 0), (side, side)].map(|at| square(&plain, at, side));
    let mut before: Vec<f32> = vec![];
    for (at, frame) in frames.iter().enumerate() {
        let whole = plain.look(frame).unwrap().0;
        let patches = clip.report.patches;
        let seen = clip.look(frame).unwrap().0;
        let changed = match at {
            0 => (0..grid * grid).collect(),
            // The place that was left and the one that was taken, and what touches them.
            1 => vec![0, 1, 2, grid, grid + 1, grid + 2],
            _ => (0..3).flat_map(|row| (0..3).map(move |column| row * grid + column)).collect(),
        };
        assert_eq!(clip.report.patches - patches, changed.len(), "{at}");
        for row in 0..grid * grid {
            let of = |rows: &[f32]| rows[row * width..][..width].to_vec();
            let expected = if changed.contains(&row) { of(&whole) } else { of(&before) };
            assert_eq!(of(&seen), expected, "frame {at}, patch {row}");
        }
        before = seen;
    }
}

#[test]
fn work_grows_with_the_patches_that_change_and_whole_frames_come_back() {
    let mut clip = changing(&golden("mobilevlm-v2"), true, 4);
    let vision = clip.model.vision().unwrap().clone();
    let (side, grid) = (vision.image.size.0 / vision.tower.grid() as u32, vision.tower.grid());
    let mut spent = vec![];
    for (x, y) in [(0, 0), (side, 0), (side, 0), (side, side), (0, 0), (side, 0)] {
        let before = clip.report.patches;
        let frame = square(&clip, (x, y), side);
        clip.push(&frame).unwrap();
        spent.push(clip.report.patches - before);
    }
    // A place left and one taken, and what touches them; nothing; as the first; and the fifth frame is encoded whole again.
    assert_eq!(spent, [grid * grid, 6, 0, 9, grid * grid, 6]);
    assert_eq!(clip.report().of_patches, 6 * grid * grid);
    // Frames before it make it another picture than the same pixels at the start.
    let mut fresh = changing(&golden("mobilevlm-v2"), true, 4);
    let last = square(&fresh, (side, 0), side);
    fresh.push(&last).unwrap();
    assert_ne!(fresh.held.back().unwrap().digest, clip.held.back().unwrap().digest);
}

#[test]
fn models_whose_patches_cannot_be_encoded_one_by_one_say_so() {
    let refused = |name: &str, options: LoadOptions| {
        let options = LoadOptions { changed_patches: true, ..options };
        Model::load_with(golden(name), &options).err().unwrap().to_string()
    };
    for name in ["qwen2vl", "fastvlm"] {
        let told = refused(name, LoadOptions::default());
        assert!(told.contains("CLIP, SigLIP") || told.contains("one tile"), "{told}");
    }
    let repeats = LoadOptions { repeated_patches: Some(0.0), ..LoadOptions::default() };
    assert!(refused("llava", repeats).contains("--skip-repeated-patches"));
}
