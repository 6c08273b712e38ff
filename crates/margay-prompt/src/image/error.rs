//! What can go wrong with a picture.

/// A picture that could not be read or prepared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file holds no bytes.
    #[error("the picture is an empty file (0 bytes); give one of: {formats}")]
    Empty {
        /// The formats that can be read.
        formats: &'static str,
    },
    /// The bytes are not a picture Margay reads.
    #[error("this is not a picture Margay can read: it looks like {looks_like}; give one of: {formats}")]
    UnknownFormat {
        /// What the first bytes look like.
        looks_like: String,
        /// The formats that can be read.
        formats: &'static str,
    },
    /// The file is larger than the limit.
    #[error("the picture file has {bytes} bytes, more than the limit of {limit}; make it smaller")]
    FileTooLarge {
        /// Size of the file in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The header announces more pixels than the limit. Nothing was decoded.
    #[error(
        "the picture is {width}x{height} = {pixels} pixels, more than the limit of {limit}; scale it down"
    )]
    TooManyPixels {
        /// Width the header announces.
        width: u32,
        /// Height the header announces.
        height: u32,
        /// Their product.
        pixels: u64,
        /// The limit in pixels.
        limit: u64,
    },
    /// Decoding would need more memory than the limit. Nothing was decoded.
    #[error(
        "decoding this {width}x{height} picture needs {bytes} bytes, more than the limit of {limit}; scale it down"
    )]
    TooMuchMemory {
        /// Width the header announces.
        width: u32,
        /// Height the header announces.
        height: u32,
        /// Bytes the decoder and its result would take.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The header announces no pixels.
    #[error("the picture has no pixels ({width}x{height})")]
    NoPixels {
        /// Width.
        width: u32,
        /// Height.
        height: u32,
    },
    /// The file is damaged or cut short.
    #[error("the {format} picture is damaged or cut short: {detail}")]
    Damaged {
        /// Name of the format.
        format: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// The format is known, this flavour of it is not read.
    #[error(
        "this {format} picture uses a feature Margay does not read: {detail}; save it as an ordinary PNG or JPEG"
    )]
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// A buffer and its stated size disagree.
    #[error("a {width}x{height} picture needs {expected} bytes, got {got}")]
    WrongLength {
        /// Width.
        width: u32,
        /// Height.
        height: u32,
        /// Bytes expected.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// The spec asks for something that cannot be done.
    #[error("the image spec is not usable: {detail}")]
    BadSpec {
        /// Which field, and why.
        detail: String,
    },
    /// One side is too many times as long as the other.
    #[error(
        "the picture is {width}x{height}: one side is more than {most} times as long as the other; crop it first"
    )]
    TooNarrow {
        /// Width.
        width: u32,
        /// Height.
        height: u32,
        /// How many times at most.
        most: u32,
    },
    /// Fitting the picture would produce too many pixels.
    #[error(
        "fitting a {width}x{height} picture would make an intermediate picture of {to_width}x{to_height} pixels, more than the limit of {limit}; crop it to a less extreme shape first"
    )]
    ResultTooLarge {
        /// Width of the source.
        width: u32,
        /// Height of the source.
        height: u32,
        /// Width of the intermediate picture.
        to_width: u64,
        /// Height of the intermediate picture.
        to_height: u64,
        /// The limit in pixels.
        limit: u64,
    },
}
