//! Recorded trees replay: what a machine said once, the readers say again.

use margay_observe::{Root, machine, process};

fn tree(name: &str) -> Root {
    Root::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/trees/").to_owned() + name)
}

#[test]
fn x86_laptop_is_read_in_full() {
    let root = tree("x86-laptop");
    assert_eq!(process::peak_rss_bytes(&root), Some(123_456 * 1024));
    assert_eq!(process::rss_bytes(&root), Some(100_000 * 1024));
    assert_eq!(machine::cpu_name(&root).as_deref(), Some("Intel(R) Core(TM) i7-1185G7 @ 3.00GHz"));
    assert_eq!(machine::logical_cores(&root), Some(7), "the list of online processors counts, not cpuinfo");
    let memory = machine::memory(&root).unwrap();
    assert_eq!(memory.total_bytes, 16_254_180 * 1024);
    assert_eq!(memory.available_bytes, Some(9_254_180 * 1024));
}

#[test]
fn arm_phone_names_its_kinds_of_cores_and_keeps_absent_numbers_unknown() {
    let root = tree("arm-phone");
    assert_eq!(
        machine::cpu_name(&root).as_deref(),
        Some("Qualcomm Technologies, Inc SM8550 (Cortex-A510, Cortex-X3, implementer 0x51 part 0x001)")
    );
    assert_eq!(machine::logical_cores(&root), Some(4));
    assert_eq!(process::peak_rss_bytes(&root), None);
    assert_eq!(machine::memory(&root).unwrap().available_bytes, None);
}

#[test]
fn a_tree_that_is_not_there_is_unknown_throughout() {
    let root = tree("no-such-tree");
    assert_eq!(process::peak_rss_bytes(&root), None);
    assert_eq!(process::rss_bytes(&root), None);
    assert_eq!(machine::cpu_name(&root), None);
    assert_eq!(machine::logical_cores(&root), None);
    assert_eq!(machine::memory(&root), None);
}
