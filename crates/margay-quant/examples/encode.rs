//! Packs one matrix again and again as it is told on its input, for `bench/quantization/encoders.py`.
//!
//!     encode NUMBERS COLUMNS      NUMBERS: a file of little-endian float32
//!
//! Each line of the input is `encode TYPE`, `weighted TYPE` (importances: the mean square of each column's number in the
//! first row, at least 1e-6), `decode TYPE` (of what was encoded last) or `write PATH` (what was encoded last); each is
//! answered by one line when it is done.

use std::io::{BufRead, Error, Write};

use margay_quant::{BlockFormat, format};
use margay_tensor::DType;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, columns] = &arguments[..] else { return Err(Error::other("encode NUMBERS COLUMNS")) };
    let columns: usize = columns.parse().map_err(Error::other)?;
    let values: Vec<f32> =
        std::fs::read(path)?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let importance: Vec<f32> = values[..columns].iter().map(|x| (x * x).max(1e-6)).collect();
    let (mut packed, mut back) = (Vec::new(), vec![0.0; values.len()]);
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (verb, object) = line.split_once(' ').unwrap_or((&line, ""));
        if verb == "write" {
            std::fs::write(object, &packed)?;
        } else {
            let dtype = DType::from_name(object).ok_or_else(|| Error::other("no such type"))?;
            let format: &dyn BlockFormat = format(dtype).ok_or_else(|| Error::other("no such format"))?;
            let row_bytes = dtype.row_bytes(columns).ok_or_else(|| Error::other("no whole blocks"))?;
            packed.resize(values.len() / columns * row_bytes, 0);
            let rows = values.chunks(columns).zip(packed.chunks_mut(row_bytes));
            match verb {
                "encode" => rows.for_each(|(row, out)| format.encode(row, out)),
                "weighted" => rows.for_each(|(row, out)| format.encode_weighted(row, &importance, out)),
                "decode" => format.decode(&packed, &mut back),
                _ => return Err(Error::other("encode, weighted, decode or write")),
            }
        }
        writeln!(out, "done")?;
        out.flush()?;
    }
    Ok(())
}
