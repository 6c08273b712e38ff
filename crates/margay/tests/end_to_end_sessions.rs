//! Conversations: what is kept, what is computed again, how they end. The models are tiny and random, so that nothing
//! here depends on what an answer says.

#![allow(clippy::unwrap_used, reason = "a test")]

use margay::rooms::{
    cpu::Isa,
    file::{SafeTensors, TensorSource},
    graph::MemoryUse,
    prompt::text::Segment,
};
use margay::{
    AskOptions, Content, Error, Event, Image, KvType, LoadOptions, Model, ModelSource, Report, Sampling,
    Stage, Stop, Turn,
};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn model(name: &str, options: LoadOptions) -> Model {
    Model::load_with(golden(name), &options).unwrap()
}

fn picture(name: &str) -> Image {
    Image::open(golden(name).join("wide.png")).unwrap()
}

fn short() -> AskOptions {
    AskOptions { max_tokens: 12, ..AskOptions::default() }
}

fn ask(model: &Model, images: &[Image], text: &str, options: &AskOptions) -> Report {
    model.session().unwrap().ask_with(images, text, options).unwrap().report().unwrap()
}

#[test]
fn the_answer_does_not_depend_on_the_batch_or_the_threads() {
    let image = [picture("mobilevlm-v2")];
    let base = ask(&model("mobilevlm-v2", LoadOptions::default()), &image, "a red square", &short());
    assert_eq!(base.stages.visual_tokens, 9);
    for (batch, threads) in [(1, 1), (7, 2), (512, 3)] {
        let options = LoadOptions { batch, threads: Some(threads), ..LoadOptions::default() };
        let other = ask(&model("mobilevlm-v2", options), &image, "a red square", &short());
        assert_eq!(other.tokens, base.tokens, "batch {batch}, {threads} threads");
    }
}

#[test]
fn the_memory_of_a_model_is_what_was_predicted() {
    for (name, image) in
        [("mobilevlm-v1", true), ("llava", true), ("siglip", true), ("qwen3moe", false), ("gemma", false)]
    {
        for context in [128, 400] {
            let options = LoadOptions { context: Some(context), ..LoadOptions::default() };
            let predicted =
                ModelSource::open(&golden(name), None).unwrap().predict_memory(&options, None).unwrap();
            let model = model(name, options);
            let images: Vec<_> = image.then(|| picture(name)).into_iter().collect();
            let mut session = model.session().unwrap();
            assert_eq!(session.cache_bytes(), predicted.cache_bytes, "{name}");
            let ask = AskOptions { max_tokens: 1, ..AskOptions::default() };
            session.ask_with(&images, "a", &ask).unwrap().report().unwrap();
            let held = model.memory().unwrap();
            let parts: Vec<_> =
                [Some(predicted.text), predicted.encode, predicted.project].into_iter().flatten().collect();
            let sum = |of: fn(&MemoryUse) -> usize| parts.iter().map(of).sum::<usize>();
            let weights = |m: &MemoryUse| m.packed_weight_bytes + m.mapped_weight_bytes;
            assert_eq!(sum(weights), weights(&held), "{name}");
            assert_eq!(sum(|m| m.arena_bytes), held.arena_bytes, "{name}");
            assert_eq!(sum(|m| m.scratch_bytes), held.scratch_bytes, "{name}");
            assert!(held.scratch_bytes > 0, "{name}");
        }
    }
}

#[test]
fn every_type_of_cache_takes_what_was_predicted_and_uses_no_more() {
    for kv in KvType::ALL {
        for kv_image in [None, Some(KvType::Kivi2)] {
            let options = LoadOptions { context: Some(400), kv, kv_image, ..LoadOptions::default() };
            let source = ModelSource::open(&golden("llava"), None).unwrap();
            let predicted = source.predict_memory(&options, None).unwrap().cache_bytes;
            let model = model("llava", options);
            let mut session = model.session().unwrap();
            assert_eq!(session.cache_bytes(), predicted, "{kv:?}");
            let before = session.used_cache_bytes();
            let report = session.ask_with(&[picture("llava")], "a", &short()).unwrap().report().unwrap();
            assert!(!report.tokens.is_empty());
            assert!(session.used_cache_bytes() > before && session.used_cache_bytes() <= predicted, "{kv:?}");
        }
    }
}

#[test]
fn a_second_question_computes_only_what_is_new() {
    let model = model("mobilevlm-v2", LoadOptions { kv: KvType::F32, ..LoadOptions::default() });
    let mut session = model.session().unwrap();
    let first = session.ask_with(&[picture("mobilevlm-v2")], "one", &short()).unwrap().report().unwrap();
    assert_eq!(first.stages.reused_tokens, 0);
    let second = session.ask_with(&[], "two", &short()).unwrap().report().unwrap();
    assert!(second.stages.reused_tokens >= first.stages.prefill_tokens - 1, "{:?}", second.stages);
    assert!(second.stages.encode_ms.is_none(), "the picture is not encoded again");
    assert_eq!(second.stages.visual_tokens, 9);

    session.clear();
    let again = session.ask_with(&[picture("mobilevlm-v2")], "one", &short()).unwrap().report().unwrap();
    assert_eq!(again.tokens, first.tokens, "a cleared session is a new one");
}

#[test]
fn an_8_bit_cache_takes_less_memory_and_the_reference_refuses_it() {
    let of = |kv| model("mobilevlm-v2", LoadOptions { kv, ..LoadOptions::default() });
    let bytes = |kv| of(kv).session().unwrap().cache_bytes();
    assert!(bytes(KvType::Q8) < bytes(KvType::F16) && bytes(KvType::F16) < bytes(KvType::F32));
    let report = ask(&of(KvType::Q8), &[picture("mobilevlm-v2")], "one", &short());
    assert!(!report.tokens.is_empty());
    let options = LoadOptions { kv: KvType::Q8, backend: "reference".to_owned(), ..LoadOptions::default() };
    let refused = margay::backend(&options).err().unwrap().to_string();
    // Where the reference is not compiled in, it is its name that is unknown.
    assert!(refused.contains("kv") && refused.contains("cpu") || refused.contains("reference"), "{refused}");
}

#[test]
fn pictures_keep_their_order_and_each_counts() {
    let model = model("llava", LoadOptions::default());
    let (a, b) = (picture("llava"), Image::filled(40, 90, [10, 200, 30]).unwrap());
    let both = ask(&model, &[a.clone(), b.clone()], "compare", &short());
    assert_eq!(both.stages.visual_tokens, 2 * model.config().vision.as_ref().unwrap().tile_tokens());
    // A picture that comes with a later question stands behind the first one.
    let mut session = model.session().unwrap();
    session.ask_with(&[a], "one", &short()).unwrap().report().unwrap();
    let later = session.ask_with(&[b], "two", &short()).unwrap().report().unwrap();
    assert_eq!(later.stages.visual_tokens, both.stages.visual_tokens);
    assert!(later.stages.reused_tokens > 0);
}

#[test]
fn a_cancelled_answer_ends_and_the_session_goes_on() {
    let model = model("llava", LoadOptions::default());
    let mut session = model.session().unwrap();
    let cancel = session.cancel();
    let mut stop = None;
    for event in session.ask_with(&[picture("llava")], "one", &AskOptions::default()).unwrap() {
        match event.unwrap() {
            Event::Text(_) => cancel.cancel(),
            Event::Done(report) => stop = Some(report.stop),
            _ => {}
        }
    }
    assert_eq!(stop, Some(Stop::Cancelled));

    // Cancelled before the picture was seen: the question is taken back, and nothing is out of step afterwards.
    let mut session = model.session().unwrap();
    let cancel = session.cancel();
    let mut answer = session.ask_with(&[picture("llava")], "one", &short()).unwrap();
    cancel.cancel();
    let Some(Ok(Event::Done(report))) = answer.next() else { panic!("a cancelled answer still reports") };
    assert_eq!((report.stop, report.tokens.len()), (Stop::Cancelled, 0));
    drop(answer);
    let fresh = ask(&model, &[picture("llava")], "one", &short());
    let after = session.ask_with(&[picture("llava")], "one", &short()).unwrap().report().unwrap();
    assert_eq!(after.tokens, fresh.tokens);
}

#[test]
fn a_question_stopped_before_its_first_token_is_taken_back() {
    let options = LoadOptions { batch: 4, kv: KvType::F32, ..LoadOptions::default() };
    let model = model("mobilevlm-v2", options);
    let other = Image::filled(30, 60, [0, 90, 200]).unwrap();
    let fresh = ask(&model, std::slice::from_ref(&other), "two", &short());
    for stage in [Stage::Project, Stage::Prefill] {
        let mut session = model.session().unwrap();
        let cancel = session.cancel();
        let mut stopped = None;
        for event in session.ask_with(&[picture("mobilevlm-v2")], "one", &short()).unwrap() {
            match event.unwrap() {
                // Prefill takes several batches; the first is stopped after.
                Event::Stage { stage: ended, .. } if ended == stage => cancel.cancel(),
                Event::Done(report) => stopped = Some((report.stop, report.stages.ttft_ms)),
                _ => {}
            }
        }
        assert_eq!(stopped, Some((Stop::Cancelled, None)));
        // Another picture takes the rows of the first: nothing computed from that one may be found again.
        let after =
            session.ask_with(std::slice::from_ref(&other), "two", &short()).unwrap().report().unwrap();
        assert_eq!((after.tokens, after.stages.visual_tokens), (fresh.tokens.clone(), 9), "{stage:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_said_before_anything_is_computed() {
    let text = model("llama", LoadOptions::default());
    let mut session = text.session().unwrap();
    assert!(matches!(session.ask(&[], "  \n"), Err(Error::EmptyPrompt)));
    assert!(matches!(session.ask(&[picture("llava")], "what"), Err(Error::NoVision { .. })));
    let long = "word ".repeat(5000);
    let Err(Error::PromptTooLong { prompt, context, .. }) = session.ask(&[], &long) else { panic!("fits") };
    assert!(prompt > context);
    let report = session.ask_with(&[], "hello", &short()).unwrap().report().unwrap();
    assert!(!report.tokens.is_empty(), "refused questions leave no trace");
    let hot = AskOptions { sampling: Sampling { temperature: f32::NAN, ..Sampling::default() }, ..short() };
    assert!(matches!(session.ask_with(&[], "hello", &hot), Err(Error::Option { option: "temperature", .. })));
}

#[test]
fn answers_end_where_they_must() {
    let options = LoadOptions { context: Some(24), ..LoadOptions::default() };
    let small = model("llama", options);
    let free = AskOptions { max_tokens: 1000, ..AskOptions::default() };
    let report = ask(&small, &[], "hello there", &free);
    let used = report.stages.prefill_tokens + report.tokens.len();
    assert!(report.stop == Stop::End || (report.stop == Stop::Context && used == 25), "{report:?}");
    let one = AskOptions { max_tokens: 1, ..AskOptions::default() };
    let report = ask(&small, &[], "hello there", &one);
    assert_eq!((report.tokens.len(), report.stages.decode_tokens), (1, 0));
    assert_eq!(report.stages.decode_ms, None, "no decode ran, so its time is unknown");
}

#[test]
fn the_model_inside_the_program_answers() {
    let model = Model::nano().unwrap();
    let report = ask(&model, &[Image::filled(50, 80, [200, 0, 0]).unwrap()], "What is this?", &short());
    assert_eq!(report.stages.visual_tokens, model.config().vision.as_ref().unwrap().tile_tokens());
    assert!(report.stages.load_ms.is_some() && report.stages.encode_ms.is_some());
}

/// What the shipped file says of the example pictures. Eight-bit weights, half precision cache: every instruction set of
/// every architecture gives these words, not only one's own.
const NANO_SAYS: [(&str, &str, &str); 6] = [
    ("street.png", "What does the sign say?", "BAR"),
    (
        "street.png",
        "Describe the picture.",
        "A small red heart, a large green triangle, a large yellow circle and a white sign that says BAR.",
    ),
    ("street.png", "Where is the triangle relative to the circle?", "below"),
    ("street.png", "Is there a dog?", "I can't tell."),
    (
        "balloons.jpg",
        "Describe the picture.",
        "A small red square, a large red circle, a large blue heart and a small orange star.",
    ),
    ("poster.webp", "How many shapes are there?", "3"),
];

#[test]
fn the_model_inside_the_program_says_the_same_on_every_instruction_set() {
    for isa in Isa::supported() {
        let model =
            Model::nano_with(&LoadOptions { isa: Some(isa.name().to_owned()), ..LoadOptions::default() });
        let model = model.unwrap();
        for (picture, question, answer) in NANO_SAYS {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/images").join(picture);
            let said = ask(&model, &[Image::open(path).unwrap()], question, &AskOptions::default()).text;
            assert_eq!(said, answer, "{picture}, {question}, {isa}");
        }
    }
}

/// The prompt of a case of a Moondream golden, and the tokens that follow.
fn seen_whole(folder: &str, case: &str) -> (Image, String, Vec<u32>) {
    let folder = golden(folder);
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("prompt.json")).unwrap()).unwrap();
    let found = json["cases"].as_array().unwrap().iter().find(|c| c["name"] == case).unwrap();
    let stored = SafeTensors::open(folder.join(format!("golden.{case}.safetensors"))).unwrap();
    let greedy = stored.tensor("greedy").unwrap();
    let greedy = greedy.bytes().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    let image = Image::open(folder.join(found["images"][0].as_str().unwrap())).unwrap();
    (image, found["prompt"].as_str().unwrap().to_owned(), greedy.collect())
}

#[test]
fn a_picture_that_sees_itself_whole_is_never_cut_into_batches() {
    let (image, prompt, greedy) = seen_whole("moondream", "wide");
    for (batch, threads) in [(1, 1), (30, 2), (512, 3)] {
        let options =
            LoadOptions { batch, threads: Some(threads), kv: KvType::F32, ..LoadOptions::default() };
        let model = model("moondream", options);
        let mut session = model.session().unwrap();
        let ask = AskOptions { max_tokens: greedy.len(), ..AskOptions::default() };
        let report = session.ask_raw(std::slice::from_ref(&image), &prompt, &ask).unwrap().report().unwrap();
        assert_eq!(report.tokens, greedy, "batch {batch}");
        assert_eq!(report.stages.visual_tokens, 25);
    }
    // Words before the picture are part of what sees itself, and do not fit.
    let options = LoadOptions { batch: 1, ..LoadOptions::default() };
    let mut session = model("moondream", options).session().unwrap();
    let long = format!("one two three four five {prompt}");
    let error = session.ask_raw(&[image], &long, &short()).unwrap().report().unwrap_err();
    assert!(matches!(error, Error::LongPrefix { prefix, batch: 26 } if prefix > 26), "{error}");
}

#[test]
fn a_template_whose_words_are_ids_gives_the_original_prompt() {
    let folder = "moondream-ids";
    let options = LoadOptions { kv: KvType::F32, ..LoadOptions::default() };
    for (case, question) in [("wide", "Is 7 on it?"), ("small", "What does the sign say?")] {
        let (image, prompt, greedy) = seen_whole(folder, case);
        assert!(prompt.contains(question), "{prompt}");
        let ask = AskOptions { max_tokens: greedy.len(), ..AskOptions::default() };
        let model = model(folder, options.clone());
        let mut session = model.session().unwrap();
        let report = session.ask_with(&[image], question, &ask).unwrap().report().unwrap();
        assert_eq!(report.tokens, greedy, "{case}");
    }
}

#[test]
fn what_saw_a_picture_whole_is_not_reused_without_it() {
    let model = model("moondream", LoadOptions { kv: KvType::F32, batch: 8, ..LoadOptions::default() });
    let [wide, tall] = ["wide", "tall"].map(|case| seen_whole("moondream", case).0);
    let (of_wide, of_nothing) =
        (ask(&model, std::slice::from_ref(&wide), "one", &short()), ask(&model, &[], "one", &short()));
    assert_ne!(of_wide.tokens, of_nothing.tokens);

    // Goes on behind the picture.
    let mut session = model.session().unwrap();
    let first = session.ask_with(std::slice::from_ref(&wide), "one", &short()).unwrap().report().unwrap();
    assert_eq!(first.tokens, of_wide.tokens);
    let second = session.ask_with(&[], "two", &short()).unwrap().report().unwrap();
    assert!(second.stages.reused_tokens >= 26, "{:?}", second.stages);
    // A second picture is an error, and changes nothing.
    let error = session.ask_with(std::slice::from_ref(&tall), "three", &short()).err().unwrap();
    assert!(matches!(error, Error::OnePicture { pictures: 2, .. }), "{error}");

    // The token before the picture is the same in all prompts, but it saw the picture.
    session.clear();
    for (images, expected) in [(&[][..], &of_nothing), (&[wide.clone()][..], &of_wide), (&[], &of_nothing)] {
        let turn = |content: Vec<Content>| Turn { role: "user".to_owned(), content };
        let mut content: Vec<_> = images.iter().cloned().map(Content::Image).collect();
        content.push(Content::Text("one".to_owned()));
        let got = session.ask_turns(&[turn(content)], &short()).unwrap().report().unwrap();
        assert_eq!(got.tokens, expected.tokens);
    }

    // Stopped within its prefill, a question about a picture leaves nothing behind.
    let mut session = model.session().unwrap();
    let cancel = session.cancel();
    for event in session.ask_with(&[wide], "one", &short()).unwrap() {
        if matches!(event.unwrap(), Event::Stage { stage: Stage::Prefill, .. }) {
            cancel.cancel();
        }
    }
    assert_eq!(session.ask_with(&[], "one", &short()).unwrap().report().unwrap().tokens, of_nothing.tokens);
}

#[test]
fn pictures_are_numbered_through_a_conversation_and_reused() {
    let folder = golden("minicpmv");
    let model = model("minicpmv", LoadOptions { kv: KvType::F32, batch: 16, ..LoadOptions::default() });
    let [wide, small] = ["wide.png", "small.png"].map(|name| Image::open(folder.join(name)).unwrap());
    let mut session = model.session().unwrap();
    let first = session.ask_with(&[wide.clone(), small.clone()], "one", &short()).unwrap().report().unwrap();
    let second = session.ask_with(std::slice::from_ref(&small), "two", &short()).unwrap().report().unwrap();
    assert_eq!((first.stages.visual_tokens, second.stages.visual_tokens), (8 * 6, 9 * 6));
    assert!(second.stages.reused_tokens >= first.stages.prefill_tokens, "{:?}", second.stages);

    // The same conversation as the published code writes it.
    let whole = |number: usize| format!("<image_id>{number}</image_id><image>{}</image>", "#".repeat(6));
    let slices = ["<slice>######</slice>".repeat(3), "<slice>######</slice>".repeat(3)].join("\n");
    let (im, end) = ("<|im_start|>", "<|im_end|>\n");
    let text = [
        format!("{im}system\nYou are a helpful assistant.{end}{im}user\n"),
        format!("{}{slices}\n{}\none{end}{im}assistant\n", whole(0), whole(1)),
    ];
    let expected: usize = text
        .concat()
        .split('#')
        .map(|text| model.tokenizer().encode_segments(&[Segment::trusted(text)]).unwrap().len())
        .sum();
    assert_eq!(first.stages.prefill_tokens, expected + 8 * 6);

    let turn = |role: &str, images: &[Image], text: &str| {
        let mut content: Vec<_> = images.iter().cloned().map(Content::Image).collect();
        content.push(Content::Text(text.to_owned()));
        Turn { role: role.to_owned(), content }
    };
    let turns = [
        turn("user", &[wide, small.clone()], "one"),
        turn("assistant", &[], &first.text),
        turn("user", &[small], "two"),
    ];
    let again = model.session().unwrap().ask_turns(&turns, &short()).unwrap().report().unwrap();
    assert_eq!(again.tokens, second.tokens);
}
