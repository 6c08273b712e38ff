//! Bytes of a picture file to a [`Picture`]: format by content, bounds before pixels, upright.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{ImageError, Picture};

/// What [`decode`] reads, for messages.
pub const READABLE_FORMATS: &str = "PNG, JPEG, WebP, GIF (first frame), BMP";

/// Bounds that are checked before any pixel is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Most pixels (width x height). Default 64 Mpx, above any phone's ordinary camera mode.
    pub max_pixels: u64,
    /// Most bytes that the decoder and its result may allocate. Default 512 MiB.
    pub max_alloc_bytes: u64,
    /// Most bytes of the file itself. Default 256 MiB.
    pub max_file_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_pixels: 64_000_000, max_alloc_bytes: 512 << 20, max_file_bytes: 256 << 20 }
    }
}

/// Decodes a picture; the format is found by content, the EXIF orientation is applied.
///
/// Colours follow Pillow's `convert("RGB")`: grey is repeated, palettes are looked up, a transparent pixel keeps
/// its stored colour (the alpha plane comes along in [`Picture::alpha`]), of 16 bits the high byte counts. One
/// difference on purpose: Pillow clips 16-bit grey at 255, so that nearly everything turns white; here grey takes
/// the high byte as colour does.
///
/// # Errors
/// [`ImageError::Empty`], [`ImageError::UnknownFormat`], [`ImageError::FileTooLarge`],
/// [`ImageError::TooManyPixels`] and [`ImageError::TooMuchMemory`] before any pixel is decoded;
/// [`ImageError::Damaged`] for a file that is cut short, [`ImageError::Unsupported`].
///
/// # Examples
/// ```
/// use margay_prompt::image::{ImageError, ImageLimits, decode};
/// let error = decode(b"Dear diary, today", &ImageLimits::default()).unwrap_err();
/// assert!(matches!(error, ImageError::UnknownFormat { .. }));
/// assert!(error.to_string().contains("looks like text"));
/// ```
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Picture, ImageError> {
    let mut header = Header::read(bytes, limits)?;
    let orientation = orientation(&mut header.decoder);
    let name = header.name;
    let mut decoded = DynamicImage::from_decoder(header.decoder).map_err(|error| translate(error, name))?;
    decoded.apply_orientation(orientation);
    to_picture(&decoded)
}

/// Width and height, pixels, that [`decode`] will give, from the header alone.
///
/// # Errors
/// Those of [`decode`] that are told before any pixel is decoded, and a JPEG that is cut short; a file that is damaged
/// further on is told by [`decode`].
pub fn size(bytes: &[u8], limits: &ImageLimits) -> Result<(u32, u32), ImageError> {
    let mut header = Header::read(bytes, limits)?;
    let (width, height) = header.decoder.dimensions();
    Ok(match orientation(&mut header.decoder) {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => (width, height),
    })
}

/// A picture whose header is read and within bounds.
struct Header<'b> {
    decoder: Box<dyn ImageDecoder + 'b>,
    /// Of its format, for messages.
    name: &'static str,
}

impl<'b> Header<'b> {
    fn read(bytes: &'b [u8], limits: &ImageLimits) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty { formats: READABLE_FORMATS });
        }
        if bytes.len() as u64 > limits.max_file_bytes {
            return Err(ImageError::FileTooLarge { bytes: bytes.len() as u64, limit: limits.max_file_bytes });
        }
        let (format, name) = readable_format(bytes)?;
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut decoder_limits = Limits::default();
        decoder_limits.max_alloc = Some(limits.max_alloc_bytes);
        reader.limits(decoder_limits);
        let decoder = reader.into_decoder().map_err(|error| translate(error, name))?;
        let (width, height) = decoder.dimensions();
        check_header(width, height, decoder.total_bytes(), limits)?;
        if format == ImageFormat::Jpeg {
            check_jpeg_is_whole(bytes)?;
        }
        Ok(Header { decoder: Box::new(decoder), name })
    }
}

/// The format by content, and its name for messages.
fn readable_format(bytes: &[u8]) -> Result<(ImageFormat, &'static str), ImageError> {
    let known = [
        (ImageFormat::Png, "PNG"),
        (ImageFormat::Jpeg, "JPEG"),
        (ImageFormat::WebP, "WebP"),
        (ImageFormat::Gif, "GIF"),
        (ImageFormat::Bmp, "BMP"),
    ];
    let guessed = ::image::guess_format(bytes).ok();
    known
        .into_iter()
        .find(|(format, _)| Some(*format) == guessed)
        .ok_or_else(|| ImageError::UnknownFormat { looks_like: looks_like(bytes), formats: READABLE_FORMATS })
}

/// Refuses what the header announces if it is too much.
fn check_header(width: u32, height: u32, raw_bytes: u64, limits: &ImageLimits) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels { width, height });
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(ImageError::TooManyPixels { width, height, pixels, limit: limits.max_pixels });
    }
    // The decoder's own buffer, its upright copy, and the RGB and alpha planes of the result.
    let bytes = raw_bytes.saturating_mul(2).saturating_add(pixels.saturating_mul(4));
    if bytes > limits.max_alloc_bytes {
        return Err(ImageError::TooMuchMemory { width, height, bytes, limit: limits.max_alloc_bytes });
    }
    Ok(())
}

fn translate(error: ::image::ImageError, format: &'static str) -> ImageError {
    match error {
        ::image::ImageError::Unsupported(e) => ImageError::Unsupported { format, detail: e.to_string() },
        other => ImageError::Damaged { format, detail: other.to_string() },
    }
}

/// The EXIF orientation; damaged EXIF counts as none, as in every viewer.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    // Some writers keep JPEG's APP1 prefix in WebP and PNG chunks.
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}

/// Refuses a JPEG without an end marker: the decoder would paint the missing part grey and say nothing.
fn check_jpeg_is_whole(bytes: &[u8]) -> Result<(), ImageError> {
    let cut_short = || ImageError::Damaged {
        format: "JPEG",
        detail: format!("no end-of-image marker in {} bytes", bytes.len()),
    };
    let mut at = 2; // after SOI
    let mut scans = 0usize;
    loop {
        // Entropy-coded data and stray bytes: up to the next marker. FF00 is a data byte, FFD0..FFD7 restart
        // markers within a scan, FFFF fill (ISO/IEC 10918-1, B.1.1).
        let marker = loop {
            let pair = bytes.get(at..at + 2).ok_or_else(cut_short)?;
            match (pair[0], pair[1]) {
                (0xFF, 0x00 | 0xD0..=0xD8 | 0x01) => at += 2,
                (0xFF, 0xFF) | (0..=0xFE, _) => at += 1,
                (0xFF, marker) => break marker,
            }
        };
        at += 2;
        if marker == 0xD9 {
            return if scans > 0 { Ok(()) } else { Err(cut_short()) };
        }
        scans += usize::from(marker == 0xDA);
        let length = bytes.get(at..at + 2).ok_or_else(cut_short)?;
        at += usize::from(u16::from_be_bytes([length[0], length[1]]));
    }
}

/// RGB and alpha planes of whatever the decoder produced.
fn to_picture(decoded: &DynamicImage) -> Result<Picture, ImageError> {
    let (width, height) = (decoded.width(), decoded.height());
    match decoded {
        DynamicImage::ImageRgb8(buffer) => Picture::new(width, height, buffer.as_raw().clone()),
        DynamicImage::ImageLuma8(buffer) => planes(width, height, buffer.as_raw(), 1, |v| v),
        DynamicImage::ImageLumaA8(buffer) => planes(width, height, buffer.as_raw(), 2, |v| v),
        DynamicImage::ImageRgba8(buffer) => planes(width, height, buffer.as_raw(), 4, |v| v),
        DynamicImage::ImageLuma16(buffer) => planes(width, height, buffer.as_raw(), 1, high_byte),
        DynamicImage::ImageLumaA16(buffer) => planes(width, height, buffer.as_raw(), 2, high_byte),
        DynamicImage::ImageRgb16(buffer) => planes(width, height, buffer.as_raw(), 3, high_byte),
        DynamicImage::ImageRgba16(buffer) => planes(width, height, buffer.as_raw(), 4, high_byte),
        // 32-bit float: none of the readable formats holds it.
        other => Picture::new(width, height, other.to_rgb8().into_raw()),
    }
}

/// 16 bits to 8 as Pillow's `RGB;16B` unpacker does: the high byte.
fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

/// Splits interleaved samples (1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha) into the planes of a picture.
fn planes<S: Copy>(
    width: u32,
    height: u32,
    samples: &[S],
    channels: usize,
    to_u8: impl Fn(S) -> u8,
) -> Result<Picture, ImageError> {
    let pixels = samples.len() / channels;
    let mut rgb = Vec::with_capacity(pixels * 3);
    for pixel in samples.chunks_exact(channels) {
        let grey_or_rgb = if channels < 3 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] };
        rgb.extend(grey_or_rgb.map(&to_u8));
    }
    if channels % 2 == 1 {
        return Picture::new(width, height, rgb);
    }
    let alpha = samples.chunks_exact(channels).map(|pixel| to_u8(pixel[channels - 1])).collect();
    Picture::with_alpha(width, height, rgb, alpha)
}

/// A guess at what some bytes are, for a person who gave the wrong file.
fn looks_like(bytes: &[u8]) -> String {
    let magic: &[(usize, &[u8], &str)] = &[
        (0, b"GGUF", "a GGUF model file"),
        (0, b"%PDF", "a PDF document"),
        (0, b"PK\x03\x04", "a ZIP archive"),
        (0, b"\x1f\x8b", "a gzip archive"),
        (0, b"\x7fELF", "a program"),
        (0, b"MZ", "a Windows program"),
        (0, b"II*\0", "a TIFF picture"),
        (0, b"MM\0*", "a TIFF picture"),
        (4, b"ftypavif", "an AVIF picture"),
        (4, b"ftyphei", "a HEIC picture"),
        (4, b"ftypmif1", "a HEIC picture"),
        (4, b"ftyp", "a video"),
        (0, b"\0\0\x01\0", "an icon (ICO)"),
        (0, b"8BPS", "a Photoshop file"),
        (0, b"\xff\x0a", "a JPEG XL picture"),
        (4, b"JXL ", "a JPEG XL picture"),
        (0, b"RIFF", "a RIFF file (sound or video)"),
        (0, b"OggS", "an Ogg file (sound or video)"),
        (0, b"ID3", "an MP3 sound"),
    ];
    let hit = magic.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic)));
    if let Some((_, _, name)) = hit {
        return (*name).to_owned();
    }
    let head = &bytes[..bytes.len().min(512)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        // A character cut by the window is still text.
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok(),
        Err(_) => None,
    };
    if let Some(text) = text.filter(|t| !t.chars().any(|c| c.is_control() && !c.is_whitespace())) {
        let start = text.trim_start().to_lowercase();
        if start.starts_with("<svg") || (start.starts_with("<?xml") && start.contains("<svg")) {
            return "an SVG drawing".to_owned();
        }
        if start.starts_with("<!doctype html") || start.starts_with("<html") {
            return "a web page (HTML)".to_owned();
        }
        return format!("text ({:?})", text.chars().take(24).collect::<String>());
    }
    let hex: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("unknown binary data (starts with {})", hex.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_files_are_named_for_what_they_are() {
        for (bytes, expected) in [
            (&b"GGUF\x03\0\0\0"[..], "GGUF"),
            (b"%PDF-1.7", "PDF"),
            (b"<svg xmlns='x'>", "SVG"),
            (b"  <!DOCTYPE html><p>", "HTML"),
            ("Grüße aus Köln".as_bytes(), "text"),
            (b"\x01\x02\x03\xff\xfe", "01 02 03 ff fe"),
        ] {
            let error = decode(bytes, &ImageLimits::default()).unwrap_err();
            let ImageError::UnknownFormat { looks_like, .. } = &error else { panic!("{error:?}") };
            assert!(looks_like.contains(expected), "{looks_like} should mention {expected}");
            assert!(error.to_string().contains("PNG, JPEG"), "{error}");
        }
    }

    #[test]
    fn a_limit_on_the_file_is_checked_before_its_content() {
        let limits = ImageLimits { max_file_bytes: 3, ..ImageLimits::default() };
        let error = decode(b"text", &limits).unwrap_err();
        assert_eq!(error, ImageError::FileTooLarge { bytes: 4, limit: 3 });
    }

    #[test]
    fn header_check_counts_the_memory_of_both_decoder_and_result() {
        let limits = ImageLimits { max_pixels: 100, max_alloc_bytes: 1000, ..ImageLimits::default() };
        assert!(check_header(10, 10, 300, &limits).is_ok());
        assert!(matches!(check_header(10, 11, 330, &limits), Err(ImageError::TooManyPixels { .. })));
        assert!(matches!(check_header(10, 10, 800, &limits), Err(ImageError::TooMuchMemory { .. })));
        assert!(matches!(
            check_header(u32::MAX, u32::MAX, u64::MAX, &limits),
            Err(ImageError::TooManyPixels { .. })
        ));
    }
}
