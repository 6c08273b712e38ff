//! Memory of this process.

use crate::{Root, root::kib_field};

/// Greatest resident memory of this process so far, in bytes (`VmHWM`); `None` where the system does not say (anything
/// but Linux).
pub fn peak_rss_bytes(root: &Root) -> Option<u64> {
    kib_field(&root.read("proc/self/status")?, "VmHWM")
}

/// Resident memory of this process now, in bytes (`VmRSS`); `None` where the system does not say.
pub fn rss_bytes(root: &Root) -> Option<u64> {
    kib_field(&root.read("proc/self/status")?, "VmRSS")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_its_peak_is_no_less() {
        let root = Root::system();
        let (now, peak) = (rss_bytes(&root).unwrap(), peak_rss_bytes(&root).unwrap());
        assert!(now > 0 && peak > 0);
        let touched = vec![1u8; 32 << 20];
        assert!(peak_rss_bytes(&root).unwrap() >= peak);
        assert_eq!(touched.iter().map(|b| u64::from(*b)).sum::<u64>(), 32 << 20);
    }
}
