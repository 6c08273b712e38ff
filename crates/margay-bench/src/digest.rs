//! What a thing is, told by its bytes.

use margay::ModelSource;
use ring::digest::{Context, SHA256};
use std::{io::Read, path::Path};

/// SHA-256 of a file; `None` where it cannot be read.
pub(crate) fn of_file(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hex(context)),
            count => context.update(&buffer[..count]),
        }
    }
}

/// SHA-256 over the weights, by name: name, shape, format, bytes. The same for a model inside the program as for its file.
/// `None` where one cannot be read. It reads the whole model, so it comes behind what is measured.
pub(crate) fn of_weights(source: &ModelSource) -> Option<(String, u64)> {
    let mut names: Vec<String> = source.weights.names().map(|name| name.to_string()).collect();
    names.sort_unstable();
    let mut context = Context::new(&SHA256);
    let mut bytes = 0;
    for name in names {
        let tensor = source.weights.tensor(&name).ok()?;
        context.update(format!("{name} {} {};", tensor.shape(), tensor.dtype()).as_bytes());
        context.update(tensor.bytes());
        bytes += tensor.bytes().len() as u64;
    }
    Some((hex(context), bytes))
}

fn hex(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_published_ones_and_tell_models_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(&path).as_deref(), Some(expected));
        assert_eq!(of_file(&folder.path().join("none")), None);
        let source = margay::Model::nano_source().unwrap();
        let (digest, bytes) = of_weights(&source).unwrap();
        assert!(digest.len() == 64 && bytes > 1 << 20, "{digest} {bytes}");
    }
}
