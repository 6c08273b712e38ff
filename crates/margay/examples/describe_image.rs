//! Describes a picture with the model inside the program, or with another one.
//!
//!     cargo run --release -p margay --example describe_image -- examples/images/street.png [MODEL]

#![allow(clippy::print_stdout, reason = "an example prints")]

use margay::{Image, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let picture = Image::open(args.next().ok_or("usage: describe_image PICTURE [MODEL]")?)?;
    let model = match args.next() {
        Some(path) => Model::load(path)?,
        None => Model::nano()?,
    };
    let report = model.session()?.ask(&[picture], "Describe the picture.")?.report()?;
    println!("{}", report.text);
    Ok(())
}
