//! Prefill and decode speed of a decoder of the shape of MobileLLaMA-1.4B with random weights.
//!
//! Usage: `decoder_speed [TYPE=q4_0] [THREADS=2] [PROMPT=512] [LAYERS=24] [ISA]`
#![allow(clippy::print_stdout, reason = "an example reports to its reader")]

use margay_cpu::{CpuBackend, CpuOptions, Isa};
use margay_graph::{
    Activation, Attention, Backend, BackendError, Bindings, Builder, Cancel, InputData, Mask, NormKind,
    Program, Role, Rope, RopeStyle, Stage, StateOptions, Sym, WeightSource,
};
use margay_observe::Clock;
use margay_tensor::{DType, Shape, Storage, Tensor};
use std::{collections::HashMap, error::Error};

const WIDTH: usize = 2048;
const FFN: usize = 5632;
const HEADS: usize = 16;
const HEAD_DIM: usize = 128;
const VOCABULARY: usize = 32000;
const DECODED: usize = 32;
const RUNS: usize = 3;

struct Random(HashMap<String, Tensor>);

impl WeightSource for Random {
    fn weight(&self, name: &str) -> Result<Tensor, BackendError> {
        let missing = || BackendError::Weight { name: name.to_owned(), what: "is missing".to_owned() };
        self.0.get(name).cloned().ok_or_else(missing)
    }
}

fn decoder(layers: usize) -> Result<Program, Box<dyn Error>> {
    let mut b = Builder::new(Stage::Text);
    let ids = b.input_i32("ids", Sym::Tokens);
    let positions = b.input_i32("positions", Sym::Tokens);
    let rows = b.input_i32("outputs", Sym::Outputs);
    let table = b.weight("embedding", [VOCABULARY, WIDTH], Role::TokenEmbedding);
    let mut x = b.embed(table, ids, None)?;
    for layer in 0..layers {
        let matrix = |b: &mut Builder, name: &str, out, width| {
            b.weight(&format!("{layer}.{name}"), [out, width], Role::FfnUp)
        };
        let [q, k, v, o] = ["q", "k", "v", "o"].map(|name| matrix(&mut b, name, WIDTH, WIDTH));
        let [gate, up] = ["gate", "up"].map(|name| matrix(&mut b, name, FFN, WIDTH));
        let down = matrix(&mut b, "down", WIDTH, FFN);
        let norm = b.weight("norm", [WIDTH], Role::Norm);
        let h = b.norm(x, NormKind::Rms, norm, None, 1e-6)?;
        let rope = Rope {
            head_dim: HEAD_DIM,
            rotary: HEAD_DIM,
            base: 10000.0,
            style: RopeStyle::Interleaved,
            factors: None,
            axes: None,
        };
        let [q, k, v] = [b.linear(h, q, None)?, b.linear(h, k, None)?, b.linear(h, v, None)?];
        let (q, k) = (b.rope(q, positions, rope.clone())?, b.rope(k, positions, rope)?);
        let attention = Attention {
            heads: HEADS,
            kv_heads: HEADS,
            head_dim: HEAD_DIM,
            scale: (HEAD_DIM as f32).powf(-0.5),
            mask: Mask::Causal,
            cache: None,
        };
        let h = b.attention([q, k, v], attention, true)?;
        let h = b.linear(h, o, None)?;
        x = b.add(x, h)?;
        let h = b.norm(x, NormKind::Rms, norm, None, 1e-6)?;
        let g = b.linear(h, gate, None)?;
        let g = b.activation(g, Activation::Silu)?;
        let u = b.linear(h, up, None)?;
        let h = b.mul(g, u)?;
        let h = b.linear(h, down, None)?;
        x = b.add(x, h)?;
    }
    let norm = b.weight("norm", [WIDTH], Role::Norm);
    let x = b.gather_rows(x, rows)?;
    let x = b.norm(x, NormKind::Rms, norm, None, 1e-6)?;
    let head = b.weight("head", [VOCABULARY, WIDTH], Role::Output);
    let logits = b.linear(x, head, None)?;
    b.output("logits", logits);
    Ok(b.finish()?)
}

/// One encoded row, repeated under different rotations, is random enough for speed.
fn random(shape: &Shape, dtype: DType) -> Result<Tensor, Box<dyn Error>> {
    let row = shape.row();
    let dtype = if shape.rank() == 1 { DType::F32 } else { dtype };
    let mut seed = 1u32;
    let values: Vec<f32> = (0..row)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if shape.rank() == 1 { 1.0 } else { (seed >> 8) as f32 / (1 << 24) as f32 * 0.06 - 0.03 }
        })
        .collect();
    let one = margay_quant::encode_tensor(&values, Shape::from([1, row]), dtype)?;
    let block = dtype.block_bytes();
    let bytes = one.bytes();
    let storage = Storage::build(bytes.len() * shape.rows().unwrap_or(0), |out| {
        for (i, out) in out.chunks_exact_mut(bytes.len()).enumerate() {
            out.copy_from_slice(bytes);
            out.rotate_left(i * 7 % (bytes.len() / block) * block);
        }
    });
    Ok(Tensor::new(dtype, shape.clone(), storage)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |a| a.parse());
    let dtype = arguments.first().map_or(Some(DType::Q4_0), |a| DType::from_name(a)).ok_or("no such type")?;
    let (threads, prompt, layers) = (number(1, 2)?, number(2, 512)?, number(3, 24)?);
    let isa = arguments.get(4).map(|a| Isa::from_name(a).ok_or("no such instruction set")).transpose()?;
    let program = decoder(layers)?;
    let mut weights = HashMap::new();
    let mut read = 0;
    for spec in program.weights() {
        let tensor = random(&spec.shape, dtype)?;
        read += if spec.role == Role::TokenEmbedding { 0 } else { tensor.bytes().len() };
        weights.insert(spec.name.clone(), tensor);
    }
    let cpu = CpuBackend::new(CpuOptions { threads: Some(threads), isa, ..Default::default() })?;
    let clock = Clock::start();
    let limits = Bindings::new().with(Sym::Tokens, prompt).with(Sym::Outputs, 1);
    let start = clock.now();
    let mut decoder = cpu.compile(&program, &Random(weights), &limits)?;
    println!("{}; {dtype}, {layers} layers", cpu.describe());
    println!("compile {:.2} s, {:?}", (clock.now() - start).as_secs_f64(), decoder.memory());
    let seconds = || clock.now().as_secs_f64();
    let limits_now = margay_cpu::measure::limits(&cpu, &seconds)?;
    println!(
        "machine: {:.1} GB/s read, {:.0} Gop/s ({}), {:.0} GFLOP/s",
        limits_now.read() / 1e9,
        limits_now.int8.ops_per_second / 1e9,
        limits_now.int8.instruction,
        limits_now.f32.ops_per_second / 1e9,
    );
    let cancel = Cancel::new();
    let ids: Vec<i32> = (0..prompt as i32).map(|i| i * 37 % VOCABULARY as i32).collect();
    let positions: Vec<i32> = (0..(prompt + DECODED) as i32).collect();
    let (mut prefill, mut decode, mut later) = (vec![], vec![], vec![]);
    for _ in 0..RUNS {
        let mut state = decoder.new_state(StateOptions::new(prompt + DECODED))?;
        let start = clock.now();
        let last = [prompt as i32 - 1];
        let inputs = [InputData::I32(&ids), InputData::I32(&positions[..prompt]), InputData::I32(&last)];
        decoder.run(&limits, &inputs, Some(&mut *state), &cancel)?;
        prefill.push((clock.now() - start).as_secs_f64());
        for (from, times) in [(prompt, &mut later), (0, &mut decode)] {
            state.truncate(from);
            let start = clock.now();
            for at in from..from + DECODED {
                let inputs =
                    [InputData::I32(&[1]), InputData::I32(&positions[at..at + 1]), InputData::I32(&[0])];
                let one = Bindings::new().with(Sym::Tokens, 1).with(Sym::Outputs, 1);
                decoder.run(&one, &inputs, Some(&mut *state), &cancel)?;
            }
            times.push((clock.now() - start).as_secs_f64() / DECODED as f64);
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (prefill, decode, later) = (median(&mut prefill), median(&mut decode), median(&mut later));
    println!("prefill {prompt}: {:.1} tokens/s", prompt as f64 / prefill);
    println!("decode at 0: {:.1} tokens/s, {:.1} GB/s of weights", 1.0 / decode, read as f64 / decode / 1e9);
    println!("decode at {prompt}: {:.1} tokens/s", 1.0 / later);
    Ok(())
}
