//! Pictures: bytes on disk to the floats a vision tower reads.

mod decode;
mod detail;
mod difference;
mod error;
mod picture;
mod preprocess;
mod resize;
mod slices;
mod spec;
mod stitch;
mod text_density;
mod tiles;

pub use decode::{ImageLimits, READABLE_FORMATS, decode, size};
pub use detail::halvings;
pub use difference::changed_blocks;
pub use error::ImageError;
pub use picture::Picture;
pub use preprocess::{ImageTiles, Pixels, preprocess};
pub use resize::{Filter, resize};
pub use spec::{Alpha, Around, Fit, ImageSpec, Marks, Tiling};
pub use stitch::Stitch;
pub use text_density::{DENSE_TEXT, text_density};
