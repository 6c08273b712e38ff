//! The conversation of a request as the engine takes it, with its pictures decoded.

use crate::{
    app::{App, HeldPixels},
    chat::broken,
    fields::shown,
    message::{Data, Part, Said},
    problem::Problem,
};
use axum::http::{StatusCode, Uri};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use margay::{Content, Image, ImageLimits, Turn};
use margay_observe::Stopwatch;
use std::{sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// Pictures of a request that take longer to come are not waited for.
const FETCH_TIME: Duration = Duration::from_secs(20);

/// Clients leave the padding out or put it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What was said, with every picture's bytes at hand.
pub(crate) struct Fetched {
    said: Vec<Said>,
    /// What was fetched is counted until it is decoded.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Fetches the pictures that `said` names by address.
pub(crate) async fn fetched(app: &Arc<App>, mut said: Vec<Said>) -> Result<Fetched, Problem> {
    let limits = app.limits();
    let pictures = said.iter_mut().flat_map(|said| &mut said.parts).filter_map(|part| match part {
        Part::Text(_) => None,
        Part::Picture { place, data } => Some((place, data)),
    });
    let (mut count, mut addresses) = (0, false);
    for (_, data) in pictures {
        count += 1;
        addresses |= matches!(data, Data::Address(_));
    }
    if count > limits.pictures {
        let what =
            format!("hold {count} pictures, and {} is the most that this server takes", limits.pictures);
        return Err(Problem::bad("messages", what).with_code("too_many_images"));
    }
    if count > 0 && app.model().config().vision.is_none() {
        let model = app.model().config().name.clone();
        return Err(Problem::of_engine(&margay::Error::NoVision { model }));
    }
    if !addresses {
        return Ok(Fetched { said, _permit: None });
    }
    let permit = app.fetching.clone().acquire_owned().await.map_err(|_| Problem::stopping())?;
    let app = app.clone();
    let work = tokio::task::spawn_blocking(move || {
        let (clock, mut left) = (Stopwatch::start(), app.limits().body_bytes as u64);
        for part in said.iter_mut().flat_map(|said| &mut said.parts) {
            if let Part::Picture { place, data } = part
                && let Data::Address(url) = data
            {
                let bytes = fetch(&app, place, url, left, FETCH_TIME.saturating_sub(clock.elapsed()))?;
                left = left.saturating_sub(bytes.len() as u64);
                *data = Data::Bytes(bytes);
            }
        }
        Ok(Fetched { said, _permit: Some(permit) })
    });
    work.await.map_err(|_| broken())?
}

/// Decodes the pictures of `said`, which `copies` answers will look at.
pub(crate) fn of(app: &App, said: Fetched, copies: u64) -> Result<(Vec<Turn>, HeldPixels), Problem> {
    let limits = app.limits();
    let mut pixels = 0;
    let mut turns = vec![];
    for Said { role, parts } in said.said {
        let content = parts.into_iter().map(|part| {
            Ok(match part {
                Part::Text(text) => Content::Text(text),
                Part::Picture { place, data } => {
                    let bytes = match data {
                        Data::Base64(text) => of_base64(&place, &text)?,
                        Data::Bytes(bytes) => bytes,
                        // [`fetched`] leaves none.
                        Data::Address(_) => return Err(broken()),
                    };
                    let image = decode(&place, &bytes, limits.pixels - pixels)?;
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

fn of_base64(place: &str, text: &str) -> Result<Vec<u8>, Problem> {
    BASE64
        .decode(text)
        .map_err(|e| Problem::bad(place, format!("is not base64: {e}")).with_code("invalid_image_url"))
}

/// The bytes at an address, where its host is one that the server may ask.
fn fetch(app: &App, place: &str, url: &str, most: u64, time: Duration) -> Result<Vec<u8>, Problem> {
    let bad = |what: String| Problem::bad(place, what).with_code("invalid_image_url");
    let Some(fetch) = &app.options.fetch else {
        return Err(bad(
            "is an address on the network, and this server fetches nothing; send the picture itself as \
             data:image/...;base64,..."
                .to_owned(),
        ));
    };
    let host = host_of(url).ok_or_else(|| bad("is no address of http or https".to_owned()))?;
    if !fetch.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(&host)) {
        let host = shown(&host);
        return Err(bad(format!(
            "is of {host}, from which this server fetches nothing; send the picture itself"
        )));
    }
    let limits = app.limits();
    let most = most.min(ImageLimits::default().max_file_bytes);
    (fetch.get)(url, most, time.min(limits.time)).map_err(|why| {
        let all = limits.body_bytes;
        bad(format!("cannot be had: {why} (all pictures of a request together: {all} bytes)"))
    })
}

/// The host of an address, with its port unless that is the usual one.
fn host_of(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    let (host, usual) = (url.host()?, if url.scheme_str() == Some("https") { 443 } else { 80 });
    Some(match url.port_u16().filter(|port| *port != usual) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn decode(place: &str, bytes: &[u8], pixels_left: u64) -> Result<Image, Problem> {
    let limits = ImageLimits { max_pixels: pixels_left, ..ImageLimits::default() };
    Image::from_bytes_within(bytes, place, &limits).map_err(|e| Problem::of_engine(&e))
}

/// The pictures and the words of an input to be embedded.
pub(crate) fn inputs(app: &App, said: Fetched) -> Result<(Vec<Image>, String, HeldPixels), Problem> {
    let (turns, held) = of(app, said, 1)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_is_asked_and_not_what_an_address_pretends() {
        for (url, host) in [
            ("https://example.org/a.png", Some("example.org")),
            ("http://example.org:80/a.png", Some("example.org")),
            ("http://example.org:8000/a.png", Some("example.org:8000")),
            ("https://example.org@evil.example/a.png", Some("evil.example")),
            ("https://example.org:443@evil.example:1/", Some("evil.example:1")),
            ("http://[::1]:9/a.png", Some("[::1]:9")),
            ("http:///a.png", None),
            ("http://exa mple.org/", None),
        ] {
            assert_eq!(host_of(url).as_deref(), host, "{url}");
        }
    }
}
