//! The conversation of a request as the engine takes it, with its pictures decoded.

use crate::{
    app::{App, HeldPixels},
    message::{Part, Said},
    problem::Problem,
};
use axum::http::StatusCode;
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use margay::{Content, Image, ImageLimits, Turn};

/// Clients leave the padding out or put it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes the pictures of `said`, which `copies` answers will look at.
pub(crate) fn of(app: &App, said: Vec<Said>, copies: u64) -> Result<(Vec<Turn>, HeldPixels), Problem> {
    let limits = app.limits();
    let is_picture = |part: &&Part| matches!(part, Part::Picture { .. });
    let pictures = said.iter().flat_map(|said| &said.parts).filter(is_picture).count();
    if pictures > limits.pictures {
        let what =
            format!("hold {pictures} pictures, and {} is the most that this server takes", limits.pictures);
        return Err(Problem::bad("messages", what).with_code("too_many_images"));
    }
    if pictures > 0 && app.model().config().vision.is_none() {
        let model = app.model().config().name.clone();
        return Err(Problem::of_engine(&margay::Error::NoVision { model }));
    }
    let mut pixels = 0;
    let mut turns = vec![];
    for Said { role, parts } in said {
        let content = parts.into_iter().map(|part| {
            Ok(match part {
                Part::Text(text) => Content::Text(text),
                Part::Picture { place, base64 } => {
                    let image = decode(&place, &base64, limits.pixels - pixels)?;
                    pixels += u64::from(image.width()) * u64::from(image.height());
                    Content::Image(image)
                }
            })
        });
        turns.push(Turn { role: role.to_owned(), content: content.collect::<Result<_, Problem>>()? });
    }
    let held = app.held.take(pixels.saturating_mul(copies), limits.held_pixels);
    Ok((turns, held.ok_or_else(|| full(app, pixels.saturating_mul(copies)))?))
}

fn decode(place: &str, base64: &str, pixels_left: u64) -> Result<Image, Problem> {
    let bytes = BASE64
        .decode(base64)
        .map_err(|e| Problem::bad(place, format!("is not base64: {e}")).with_code("invalid_image_url"))?;
    let limits = ImageLimits { max_pixels: pixels_left, ..ImageLimits::default() };
    Image::from_bytes_within(&bytes, place, &limits).map_err(|e| Problem::of_engine(&e))
}

/// The pictures and the words of an input to be embedded.
pub(crate) fn inputs(app: &App, parts: Vec<Part>) -> Result<(Vec<Image>, String, HeldPixels), Problem> {
    let (turns, held) = of(app, vec![Said { role: "user", parts }], 1)?;
    let (mut images, mut words) = (vec![], vec![]);
    for content in turns.into_iter().flat_map(|turn| turn.content) {
        match content {
            Content::Image(image) => images.push(image),
            Content::Text(text) => words.push(text),
        }
    }
    Ok((images, words.join("\n"), held))
}

/// Pictures of those that wait take all the room there is, or this request alone takes more than there is.
fn full(app: &App, pixels: u64) -> Problem {
    let most = app.limits().held_pixels;
    if pixels <= most {
        return app.busy();
    }
    let message =
        format!("the pictures of all n answers have {pixels} pixels, and {most} is the limit of this server");
    let problem = Problem::new(StatusCode::BAD_REQUEST, message).with_code("too_many_pixels");
    Problem { param: Some("messages".to_owned()), ..problem }
}
