//! What the traits promise: no allocation after warm-up, results independent of threads and of how a prompt is cut,
//! states that survive errors, and errors that say what does not fit.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod decoder;

use decoder::{LAYERS, PROMPT, VOCABULARY, WIDTH, Weights, decoder, prompt};
use margay_cpu::{CpuBackend, CpuOptions, Isa};
use margay_graph::{
    Backend, BackendError, Bindings, Builder, Cancel, Executable, InputData, Role, Stage, State,
    StateOptions, Sym,
};
use margay_tensor::{DType, Shape, Storage, Tensor};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::HashMap,
    time::{Duration, Instant},
};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is being torn down counts nothing.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Session {
    decoder: Box<dyn Executable>,
    state: Box<dyn State>,
}

impl Session {
    fn new(threads: usize, capacity: usize) -> Session {
        let cpu = CpuBackend::new(CpuOptions { threads: Some(threads), ..Default::default() }).unwrap();
        let (program, weights) = decoder(LAYERS);
        let limits = Bindings::new().with(Sym::Tokens, PROMPT).with(Sym::Outputs, 1);
        let decoder = cpu.compile(&program, &weights, &limits).unwrap();
        let state = decoder.new_state(StateOptions::new(capacity)).unwrap();
        Session { decoder, state }
    }

    fn feed(&mut self, ids: &[i32], cancel: &Cancel) -> Result<(), BackendError> {
        let past = self.state.len() as i32;
        let mut positions = [0; PROMPT];
        positions.iter_mut().zip(past..).for_each(|(p, at)| *p = at);
        let inputs = [
            InputData::I32(ids),
            InputData::I32(&positions[..ids.len()]),
            InputData::I32(&[ids.len() as i32 - 1]),
        ];
        let bindings = Bindings::new().with(Sym::Tokens, ids.len()).with(Sym::Outputs, 1);
        self.decoder.run(&bindings, &inputs, Some(&mut *self.state), cancel)
    }

    fn logits(&self) -> Vec<u32> {
        self.decoder.output("logits").unwrap().iter().map(|x| x.to_bits()).collect()
    }
}

#[test]
fn logits_depend_neither_on_threads_nor_on_how_the_prompt_is_cut() {
    let (ids, cancel) = (prompt(), Cancel::new());
    let mut whole = Session::new(1, PROMPT);
    whole.feed(&ids, &cancel).unwrap();
    let expected = whole.logits();
    assert!(expected.iter().any(|x| *x != 0));
    for (threads, cut) in [(2, PROMPT), (3, PROMPT), (2, 1), (1, 7), (3, 33)] {
        let mut session = Session::new(threads, PROMPT);
        for part in ids.chunks(cut) {
            session.feed(part, &cancel).unwrap();
        }
        assert_eq!(session.logits(), expected, "{threads} threads, {cut} tokens a call");
    }
}

#[test]
fn a_truncated_state_continues_as_if_the_rest_had_never_been() {
    let (ids, cancel) = (prompt(), Cancel::new());
    let mut straight = Session::new(2, PROMPT);
    straight.feed(&ids[..40], &cancel).unwrap();
    let mut detour = Session::new(2, PROMPT);
    detour.feed(&ids[..20], &cancel).unwrap();
    detour.feed(&ids[45..70], &cancel).unwrap();
    detour.state.truncate(20);
    detour.feed(&ids[20..40], &cancel).unwrap();
    assert_eq!(detour.logits(), straight.logits());
    assert_eq!(detour.state.len(), 40);
}

#[test]
fn runs_allocate_nothing_after_the_first() {
    let (ids, cancel) = (prompt(), Cancel::new());
    // One thread, so that every allocation is this thread's.
    let mut session = Session::new(1, 2 * PROMPT);
    session.feed(&ids, &cancel).unwrap();
    session.feed(&ids[..1], &cancel).unwrap();
    let before = ALLOCATIONS.get();
    session.state.truncate(0);
    session.feed(&ids, &cancel).unwrap();
    for _ in 0..10 {
        session.feed(&ids[..1], &cancel).unwrap();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    drop(vec![1]);
    assert!(ALLOCATIONS.get() > before, "the counter counts");
}

#[test]
fn errors_leave_the_state_as_it_was() {
    let (ids, cancel) = (prompt(), Cancel::new());
    let mut session = Session::new(2, 80);
    session.feed(&ids, &cancel).unwrap();
    let full = session.feed(&ids[..11], &cancel).unwrap_err();
    assert!(matches!(full, BackendError::ContextFull { capacity: 80, used: PROMPT, wanted: 11 }), "{full}");
    let unknown = session.feed(&[VOCABULARY as i32], &cancel).unwrap_err().to_string();
    assert!(unknown.contains("token 300"), "{unknown}");
    let no_picture = session.feed(&[-1], &cancel).unwrap_err().to_string();
    assert!(no_picture.contains("token -1"), "{no_picture}");
    cancel.cancel();
    assert!(matches!(session.feed(&ids[..1], &cancel), Err(BackendError::Cancelled)));
    cancel.reset();
    assert_eq!(session.state.len(), PROMPT);
    session.feed(&ids[..10], &cancel).unwrap();
    assert_eq!(session.state.len(), 80);
}

/// How soon a cancelled call must be back. Others may hold the processors just then: the fastest of some tries counts.
const SOON: Duration = Duration::from_millis(50);

#[test]
fn an_op_over_many_rows_is_given_up_at_once() {
    const SIDE: usize = 4096;
    const MOST_ROWS: usize = 4096;
    let mut b = Builder::new(Stage::Project);
    let x = b.input_f32("x", [Sym::Tokens.into(), SIDE.into()]);
    let weight = b.weight("w", [SIDE, SIDE], Role::FfnUp);
    let y = b.linear(x, weight, None).unwrap();
    b.output("y", y);
    let program = b.finish().unwrap();
    let zeros =
        Storage::build(SIDE * DType::Q4_0.block_bytes() * SIDE / DType::Q4_0.block_elements(), |_| {});
    let weight = Tensor::new(DType::Q4_0, Shape::from([SIDE, SIDE]), zeros).unwrap();
    let weights = Weights(HashMap::from([("w".to_owned(), weight)]));
    let cpu = CpuBackend::new(CpuOptions { threads: Some(2), ..Default::default() }).unwrap();
    let sizes = |rows| Bindings::new().with(Sym::Tokens, rows);
    let mut product = cpu.compile(&program, &weights, &sizes(MOST_ROWS)).unwrap();
    let x = vec![1.0; MOST_ROWS * SIDE];
    let mut run = |rows: usize, cancel: &Cancel| {
        product.run(&sizes(rows), &[InputData::F32(&x[..rows * SIDE])], None, cancel)
    };
    // As many rows as take long enough here to show anything: few on an emulated processor.
    let (mut rows, mut whole) = (1, Duration::ZERO);
    while whole < 8 * SOON {
        rows *= 2;
        let began = Instant::now();
        run(rows, &Cancel::new()).unwrap();
        whole = began.elapsed();
    }
    let mut waits = (0..5).map(|part| {
        let cancel = Cancel::new();
        let stop = cancel.clone();
        // Each try stops it somewhere else.
        let presser = std::thread::spawn(move || {
            std::thread::sleep(whole * (part + 1) / 10);
            stop.cancel();
            Instant::now()
        });
        let outcome = run(rows, &cancel);
        let back = Instant::now();
        assert!(matches!(outcome, Err(BackendError::Cancelled)), "{outcome:?}");
        back.saturating_duration_since(presser.join().unwrap())
    });
    let soon = SOON.max(whole / 16);
    assert!(waits.any(|waited| waited < soon), "five tries, none within {soon:?} (the whole: {whole:?})");
}

#[test]
fn calls_beyond_the_limits_and_wrong_inputs_are_refused() {
    let cancel = Cancel::new();
    let mut session = Session::new(1, 200);
    let (one, ids) = (Bindings::new().with(Sym::Tokens, 1).with(Sym::Outputs, 1), [1; PROMPT + 1]);
    let long = Bindings::new().with(Sym::Tokens, PROMPT + 1).with(Sym::Outputs, 1);
    let inputs = [InputData::I32(&ids), InputData::I32(&ids), InputData::I32(&[0])];
    let mut refusal = |bindings: &Bindings, inputs: &[InputData<'_>], with_state: bool| {
        let Session { decoder, state } = &mut session;
        let outcome = match with_state {
            true => decoder.run(bindings, inputs, Some(&mut **state), &cancel),
            false => decoder.run(bindings, inputs, None, &cancel),
        };
        outcome.unwrap_err().to_string()
    };
    assert!(refusal(&long, &inputs, true).contains("compiled for 70"));
    assert!(refusal(&one, &inputs, true).contains("input ids is 71 elements"));
    assert!(refusal(&one, &inputs[..2], true).contains("2 inputs"));
    assert!(refusal(&one, &inputs, false).contains("KV cache"));
    let floats = [InputData::F32(&[1.0]), InputData::I32(&[0]), InputData::I32(&[0])];
    assert!(refusal(&one, &floats, true).contains("input ids"));
    let beyond = [InputData::I32(&[1]), InputData::I32(&[0]), InputData::I32(&[1])];
    assert!(refusal(&one, &beyond, true).contains("row 1 of a value of 1 rows"));
}

#[test]
fn an_instruction_set_the_processor_lacks_is_refused_by_name() {
    let lacking = Isa::ALL.into_iter().find(|isa| !isa.is_supported()).unwrap();
    let err = CpuBackend::new(CpuOptions { isa: Some(lacking), ..Default::default() }).unwrap_err();
    assert!(err.to_string().contains(lacking.name()) && err.to_string().contains("scalar"), "{err}");
}

#[test]
fn another_precision_of_an_encoder_is_refused_where_it_would_change_nothing_or_cannot_be() {
    let mut b = Builder::new(Stage::Encode);
    let x = b.input_f32("x", [Sym::Tokens.into(), WIDTH.into()]);
    let weight = b.weight("w", [WIDTH, WIDTH], Role::FfnUp);
    let y = b.linear(x, weight, None).unwrap();
    b.output("y", y);
    let program = b.finish().unwrap();
    let limits = Bindings::new().with(Sym::Tokens, 2);
    let compile = |dtype: DType, options: CpuOptions| {
        let values = vec![0.5; WIDTH * WIDTH];
        let weight = margay_quant::encode_tensor(&values, Shape::from([WIDTH, WIDTH]), dtype).unwrap();
        let weights = Weights(HashMap::from([("w".to_owned(), weight)]));
        let cpu = CpuBackend::new(options).map_err(|e| e.to_string())?;
        cpu.compile(&program, &weights, &limits).map(|_| ()).map_err(|e| e.to_string())
    };
    let int8 = CpuOptions { int8_encoder: true, ..Default::default() };
    assert_eq!(compile(DType::F16, int8), Ok(()));
    let quantized = compile(DType::Q8_0, int8).unwrap_err();
    assert!(quantized.contains("quantized already"), "{quantized}");
    let scalar = CpuOptions { isa: Some(Isa::Scalar), bf16_encoder: true, ..Default::default() };
    let lacking = compile(DType::F16, scalar).unwrap_err();
    assert!(lacking.contains("bfloat16") && lacking.contains("scalar"), "{lacking}");
    let both = compile(DType::F16, CpuOptions { bf16_encoder: true, ..int8 }).unwrap_err();
    assert!(both.contains("ask for one"), "{both}");
}

#[test]
fn weights_of_another_shape_are_refused_by_name() {
    let (program, mut weights) = decoder(LAYERS);
    weights.0.insert("norm".to_owned(), Tensor::from_f32(Shape::from([3]), &[1.0; 3]).unwrap());
    let cpu = CpuBackend::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
    let limits = Bindings::new().with(Sym::Tokens, 1).with(Sym::Outputs, 1);
    let err = cpu.compile(&program, &weights, &limits).map(|_| ()).unwrap_err().to_string();
    assert!(err.contains("norm") && err.contains("[3]") && err.contains("[256]"), "{err}");
}

#[test]
fn parts_of_a_prefix_and_maps_that_do_not_fit_are_refused() {
    let cpu = CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    margay_testkit::refusals::of_a_part_of_a_prefix(&cpu);
    margay_testkit::refusals::of_maps_that_do_not_fit(&cpu);
}
