use super::*;
use crate::{AskOptions, Image, KvType, LoadOptions, Model};
use margay_file::{SafeTensors, TensorSource};
use std::path::{Path, PathBuf};

/// Of the largest value of a file: sums of a few float32 numbers in another order.
const GOLDEN_TOLERANCE: f32 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn load(name: &str, reduction: Option<Reduction>) -> Result<Model, Error> {
    let options = LoadOptions { kv: KvType::F32, image_cache: 1 << 20, reduction, ..LoadOptions::default() };
    Model::load_with(golden(name), &options)
}

/// The visual tokens that a session holds after a question about that picture, and what it was looked at.
fn seen(name: &str, picture: &str, method: &str, keep: Keep) -> (Vec<f32>, Option<Attention>) {
    let model = load(name, Some(Reduction { method: method.to_owned(), keep })).unwrap();
    let mut session = model.session().unwrap();
    let image = Image::open(golden(name).join(format!("{picture}.png"))).unwrap();
    let ask = AskOptions { max_tokens: 2, ..AskOptions::default() };
    let report = session.ask_with(&[image], "What?", &ask).unwrap().report().unwrap();
    let tokens = session.visual.len() / model.config().text.width;
    assert_eq!((report.pictures[0].tokens, report.stages.visual_tokens), (tokens, tokens));
    let attention = model.engine().unwrap().attention();
    (session.visual, attention)
}

/// Goldens: attention of transformers, selection of the published code (`tests/golden/make_reduction.py`).
#[test]
fn what_the_tower_looks_at_is_chosen_as_in_the_published_code() {
    for (name, picture, all) in
        [("llava", "wide", 16), ("llava", "tall", 16), ("siglip", "wide", 16), ("mobilevlm-v2", "wide", 9)]
    {
        let file =
            SafeTensors::open(golden("reduction").join(format!("{name}.{picture}.safetensors"))).unwrap();
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        assert_eq!(names.len(), 7);
        for case in names {
            let expected = file.tensor(&case).unwrap();
            let expected: Vec<f32> =
                expected.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let (method, keep) = case.split_once('.').unwrap();
            let got = match keep.parse::<f64>() {
                Ok(count) => seen(name, picture, method, Keep::Share(count / f64::from(all))).0,
                // These noisy pictures are taken for text, which would keep all.
                Err(_) => {
                    let (rows, attention) = seen(name, picture, method, Keep::Share(1.0));
                    let width = rows.len() / all as usize;
                    let auto = Reduction { method: method.to_owned(), keep: Keep::Auto };
                    auto.apply(&rows, width, attention.as_ref(), false).unwrap().0
                }
            };
            assert_eq!(got.len(), expected.len(), "{name} {picture} {case}");
            let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let off = got.iter().zip(&expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(off <= GOLDEN_TOLERANCE * most, "{name} {picture} {case} is off by {off} of {most}");
        }
    }
}

#[test]
fn a_model_that_cannot_tell_what_it_looks_at_refuses_and_names_what_fits() {
    for method in ["visionzip", "prumerge"] {
        for (name, why) in
            [("fastvlm", "the tower vit"), ("minicpmv", "the tower vit"), ("moondream", "merge, diverse")]
        {
            let reduction = Reduction { method: method.to_owned(), keep: Keep::Share(0.5) };
            let error = load(name, Some(reduction)).err().unwrap().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}

#[test]
fn pictures_whose_tokens_are_counted_late_answer_as_when_they_are_seen_again() {
    let reduction = Reduction { method: "prumerge".to_owned(), keep: Keep::Auto };
    let model = load("llava", Some(reduction)).unwrap();
    let [wide, tall] = [(60, 40, [200, 30, 30]), (30, 70, [20, 90, 160])]
        .map(|(width, height, rgb)| Image::filled(width, height, rgb).unwrap());
    let ask = AskOptions { max_tokens: 8, ..AskOptions::default() };
    let mut first = model.session().unwrap();
    let one = first.ask_with(&[wide.clone(), tall.clone()], "one", &ask).unwrap().report().unwrap();
    let [a, b] = [one.pictures[0], one.pictures[1]];
    assert!(a.tokens < 16 && b.tokens < 16 && a.of == 16 && b.of == 16, "{a:?} {b:?}");
    assert_eq!(one.stages.visual_tokens, a.tokens + b.tokens);
    let two = first.ask_with(&[], "two", &ask).unwrap().report().unwrap();
    assert_eq!((two.stages.visual_tokens, two.stages.encode_ms), (a.tokens + b.tokens, None));
    assert!(two.stages.reused_tokens > one.stages.prefill_tokens);

    // From the cache, in another conversation; and computed as one prompt.
    let mut second = model.session().unwrap();
    let again = second.ask_with(&[wide, tall], "one", &ask).unwrap().report().unwrap();
    assert_eq!((again.tokens, again.pictures, again.stages.reused_pictures), (one.tokens, one.pictures, 2));
    second.held.clear();
    second.state.truncate(0);
    assert_eq!(second.ask_with(&[], "two", &ask).unwrap().report().unwrap().tokens, two.tokens);
}

/// What a tower could have looked at, of `count` patches.
fn attention(count: usize) -> Attention {
    let numbers = |seed: f32| (0..(count + 1) * 8).map(|i| (i as f32 * seed).sin()).collect::<Vec<f32>>();
    let (queries, keys) = (numbers(0.31), numbers(0.83));
    Attention { queries, keys, width: 8, heads: 2, class_token: true, columns: count, square: 1 }
}

fn reduced(method: &str, rows: &[f32], width: usize, keep: Keep) -> Vec<f32> {
    let attention = attention(rows.len() / width);
    let reduction = Reduction { method: method.to_owned(), keep };
    reduction.apply(rows, width, Some(&attention), false).unwrap().0
}

/// Rows of 11 numbers that differ.
fn rows(count: usize) -> Vec<f32> {
    (0..count * 11).map(|i| ((i * i + 7 * i) as f32 * 0.013).sin()).collect()
}

#[test]
fn as_many_stay_as_asked_for_whatever_the_method() {
    for entry in REDUCTIONS {
        for count in [1, 2, 5, 36, 144] {
            for share in [0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0] {
                let (rows, keep) = (rows(count), Keep::Share(share));
                let left = reduced(entry.id, &rows, 11, keep);
                let kept = Reduction { method: entry.id.to_owned(), keep }.kept(count);
                assert_eq!(left.len(), kept * 11, "{} {count} {share}", entry.id);
                assert!(left.iter().all(|x| x.is_finite()));
                if kept == count {
                    assert_eq!(left, rows);
                }
                assert_eq!(left, reduced(entry.id, &rows, 11, keep), "the same every time");
            }
        }
    }
}

#[test]
fn what_is_chosen_are_rows_in_their_order() {
    let all = rows(36);
    for id in ["diverse", "even", "random"] {
        let left = reduced(id, &all, 11, Keep::Share(0.4));
        let place = |row: &[f32]| all.chunks_exact(11).position(|x| x == row).unwrap();
        let places: Vec<usize> = left.chunks_exact(11).map(place).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{id}: {places:?}");
    }
}

/// So many kinds, each three times, a little different.
fn copies(count: usize) -> (Vec<f32>, Vec<f32>) {
    let kinds = rows(count);
    let copies = kinds
        .chunks_exact(11)
        .flat_map(|row| (0..3).map(|copy| row.iter().map(|x| x + copy as f32 * 1e-4).collect::<Vec<f32>>()));
    let all = copies.flatten().collect();
    (kinds, all)
}

#[test]
fn rows_that_say_the_same_go_first() {
    // Eleven numbers span no twelve kinds: where the picture says how many stay, fewer do.
    for (count, keep) in [(12, Keep::Share(1.0 / 3.0)), (5, Keep::Auto)] {
        let (kinds, all) = copies(count);
        for id in ["diverse", "merge"] {
            let left = reduced(id, &all, 11, keep);
            let kind = |row: &[f32]| {
                let off = |kind: &[f32]| kind.iter().zip(row).map(|(a, b)| (a - b).abs()).sum::<f32>();
                kinds.chunks_exact(11).position(|kind| off(kind) < 0.01).unwrap_or(99)
            };
            let kept: Vec<usize> = left.chunks_exact(11).map(kind).collect();
            assert_eq!(kept, (0..count).collect::<Vec<_>>(), "{id} {keep:?}");
        }
    }
}

#[test]
fn where_text_is_dense_nothing_is_left_out() {
    let (_, all) = copies(5);
    for entry in REDUCTIONS {
        let reduction = Reduction { method: entry.id.to_owned(), keep: Keep::Auto };
        let attention = attention(15);
        let told = reduction.apply(&all, 11, Some(&attention), true).unwrap();
        assert_eq!(told, (all.clone(), Reason::Text), "{}", entry.id);
        let (left, reason) = reduction.apply(&all, 11, Some(&attention), false).unwrap();
        assert!(left.len() < all.len() && reason == Reason::Redundancy, "{}", entry.id);
    }
}

#[test]
fn nonsense_is_refused() {
    let config = Model::nano_source().unwrap().config;
    for (method, share) in [("merge", 0.0), ("merge", 1.1), ("merge", f64::NAN), ("nothing", 0.5)] {
        let reduction = Reduction { method: method.to_owned(), keep: Keep::Share(share) };
        assert!(reduction.check(&config).is_err(), "{method} {share}");
    }
}

/// Of 16 patches of 14 pixels, four different ones.
fn tiled() -> Image {
    let level = |x: u32, y: u32| ((x % 14) * 9 + (y % 14) * 5 + (x / 14 % 2) * 40 + (y / 14 % 2) * 90) as u8;
    let pixels = (0..56 * 56).flat_map(|at| [level(at % 56, at / 56), 80, 160]).collect();
    Image::from_picture(margay_prompt::image::Picture::new(56, 56, pixels).unwrap(), "tiled")
}

#[test]
fn patches_that_repeat_are_not_encoded_and_where_none_does_nothing_changes() {
    let with = |repeated_patches: Option<f32>, image: &Image| {
        let options = LoadOptions { kv: KvType::F32, repeated_patches, ..LoadOptions::default() };
        let model = Model::load_with(golden("llava"), &options).unwrap();
        let mut session = model.session().unwrap();
        let ask = AskOptions { max_tokens: 4, ..AskOptions::default() };
        let report = session.ask_with(std::slice::from_ref(image), "What?", &ask).unwrap().report().unwrap();
        (report, session.visual)
    };
    let wide = Image::open(golden("llava").join("wide.png")).unwrap();
    let (plain, rows) = with(None, &wide);
    let (exact, some) = with(Some(0.0), &wide);
    // A padded square repeats the padding's patches only; this picture is cut, all of its patches differ or are padding.
    let kept = exact.pictures[0].tokens;
    assert_eq!((exact.pictures[0].of, exact.stages.visual_tokens), (16, kept));
    if kept == 16 {
        assert_eq!((plain.tokens, rows), (exact.tokens, some));
    }

    let (report, rows) = with(Some(0.0), &tiled());
    let told = report.pictures[0];
    assert_eq!((told.tokens, told.of, told.why), (4, 16, Some(Reason::Repeats)));
    assert_eq!((rows.len(), report.stages.visual_tokens), (4 * 32, 4));
    // Four patches are the whole picture for the tower: other rows than those it makes of sixteen.
    let (_, all) = with(None, &tiled());
    assert!(rows.chunks_exact(32).all(|row| all.chunks_exact(32).all(|other| row != other)));
    let (report, _) = with(Some(255.0), &tiled());
    assert_eq!(report.pictures[0].tokens, 1);

    let options = LoadOptions { repeated_patches: Some(0.0), ..LoadOptions::default() };
    for (name, why) in
        [("mobilevlm-v2", "one token of each patch"), ("fastvlm", "equal patches"), ("qwen2vl", "one token")]
    {
        let error = Model::load_with(golden(name), &options).err().unwrap().to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[test]
fn a_soft_picture_is_seen_smaller_and_one_of_fine_detail_is_not() {
    let picture = |level: fn(u32, u32) -> u8| {
        let pixels = (0..640 * 512).flat_map(|at| [level(at % 640, at / 640); 3]).collect();
        Image::from_picture(margay_prompt::image::Picture::new(640, 512, pixels).unwrap(), "drawn")
    };
    let soft = picture(|x, y| (60 + (x + y) / 16) as u8);
    let fine = picture(|x, y| (100 + (x * 7 + y * 13) % 40) as u8);
    for name in ["qwen2vl", "qwen25vl", "smolvlm", "minicpmv"] {
        let asked = |image: &Image, reduction: Option<Reduction>| {
            let model = load(name, reduction).unwrap();
            let ask = AskOptions { max_tokens: 2, ..AskOptions::default() };
            let mut session = model.session().unwrap();
            let report =
                session.ask_with(std::slice::from_ref(image), "What?", &ask).unwrap().report().unwrap();
            assert_eq!(report.pictures[0].tokens, report.stages.visual_tokens, "{name}");
            let again = model
                .session()
                .unwrap()
                .ask_with(std::slice::from_ref(image), "What?", &ask)
                .unwrap()
                .report();
            assert_eq!(again.unwrap().pictures, report.pictures, "{name}");
            report.pictures[0]
        };
        let auto = || Some(Reduction { method: "merge".to_owned(), keep: Keep::Auto });
        let plain = asked(&soft, None);
        let told = asked(&soft, auto());
        assert!(told.tokens < plain.tokens, "{name}: {told:?} of {plain:?}");
        assert_eq!(told.of, plain.of, "{name}");
        if name.starts_with("qwen") {
            assert_eq!(told.why, Some(Reason::Resolution), "{name}");
            let fine = asked(&fine, auto());
            assert_eq!((fine.tokens, fine.why), (plain.tokens, None), "{name}");
            let share = Reduction { method: "merge".to_owned(), keep: Keep::Share(0.5) };
            assert!(load(name, Some(share)).is_err());
        }
    }
}
