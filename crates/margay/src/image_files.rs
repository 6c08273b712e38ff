//! Visual tokens of pictures that were encoded before, in a folder: for the next process.
//!
//! A file a picture, named by a digest of the picture and of everything that decides what it becomes. See [`crate::folder`].

use crate::{Error, digest::hexadecimal, folder::Folder, image::ImageDigest};
use ring::digest::{Context, SHA256};
use std::path::Path;

/// What its files' names end with.
const ENDING: &str = ".rows.safetensors";
/// Name of the only part.
const ROWS: &str = "rows";

/// A folder of visual tokens.
pub(crate) struct ImageFiles {
    folder: Folder,
    /// What else decides what a picture becomes: weights, types, settings.
    identity: String,
}

impl ImageFiles {
    /// Makes the folder where it is not there.
    pub(crate) fn new(folder: &Path, most_bytes: u64, identity: String) -> Result<Self, Error> {
        Ok(ImageFiles { folder: Folder::new(folder, most_bytes, ENDING)?, identity })
    }

    /// The rows of a picture and what was told of it, where they are there and whole.
    pub(crate) fn read(&self, picture: &ImageDigest) -> Option<(Vec<u8>, String)> {
        let kept = self.folder.read(&self.name(picture))?;
        Some((kept.part(ROWS)?.bytes().to_vec(), kept.about))
    }

    /// Keeps the rows of a picture, and lets go of those that were looked at longest ago where there are too many.
    pub(crate) fn keep(&self, picture: &ImageDigest, rows: &[u8], about: &str) -> Result<(), Error> {
        self.folder.keep(&self.name(picture), about, &[(ROWS, rows)]).map(|_| ())
    }

    fn name(&self, picture: &ImageDigest) -> String {
        let mut context = Context::new(&SHA256);
        context.update(&(self.identity.len() as u64).to_le_bytes());
        context.update(self.identity.as_bytes());
        context.update(picture);
        hexadecimal(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf, time::Duration};

    fn path(files: &ImageFiles, picture: &ImageDigest) -> PathBuf {
        files.folder.path(&files.name(picture))
    }

    fn files(folder: &Path, most_bytes: u64, identity: &str) -> ImageFiles {
        ImageFiles::new(folder, most_bytes, identity.to_owned()).unwrap()
    }

    #[test]
    fn what_is_kept_is_read_by_the_same_model_alone() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        files(&inner, 1 << 20, "model").keep(&[1; 32], &[7; 300], "told").unwrap();
        let again = files(&inner, 1 << 20, "model");
        assert_eq!(again.read(&[1; 32]), Some((vec![7; 300], "told".to_owned())));
        assert_eq!(again.read(&[2; 32]), None);
        assert_eq!(files(&inner, 1 << 20, "other").read(&[1; 32]), None);
    }

    #[test]
    fn any_damage_counts_as_absent_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path(), 1 << 20, "model");
        files.keep(&[1; 32], &[7; 64], "told").unwrap();
        let path = path(&files, &[1; 32]);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            // A space among the file's padding is the only thing that nothing depends on.
            let read = files.read(&[1; 32]);
            assert!(read.is_none() || read == Some((vec![7; 64], "told".to_owned())), "byte {at}");
            assert_eq!(path.exists(), read.is_some());
        }
        for len in [0, 1, 8, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(files.read(&[1; 32]).is_none() && !path.exists(), "{len} bytes");
        }
    }

    #[test]
    fn the_folder_stays_within_its_bound_and_the_least_looked_at_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let probe = files(folder.path(), 1 << 20, "model");
        probe.keep(&[0; 32], &[0; 4096], "").unwrap();
        let each = fs::metadata(path(&probe, &[0; 32])).unwrap().len();
        let files = files(folder.path(), 3 * each, "model");
        let old = |picture: u8, seconds: u64| {
            let file = fs::File::options().append(true).open(path(&files, &[picture; 32])).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        for picture in 1..=2 {
            files.keep(&[picture; 32], &[picture; 4096], "").unwrap();
        }
        (0..=2).for_each(|picture| old(picture, 100 - u64::from(picture)));
        assert!(files.read(&[0; 32]).is_some());
        fs::write(folder.path().join("a person's own file"), [0; 100_000]).unwrap();
        files.keep(&[3; 32], &[3; 4096], "").unwrap();
        let there: Vec<u8> = (0..=3).filter(|picture| path(&files, &[*picture; 32]).exists()).collect();
        assert_eq!(there, [0, 2, 3]);
        assert!(folder.path().join("a person's own file").exists());
        files.keep(&[4; 32], &vec![0; 4 * each as usize], "").unwrap();
        assert!(!path(&files, &[4; 32]).exists());
    }
}
