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
    assert_eq!(machine::physical_cores(&root), Some(4), "threads of one core count once");
    let unnamed = machine::CoreKind { cores: vec![0, 1, 2, 3, 4, 5, 7], capacity: None, max_khz: None };
    assert_eq!(machine::core_kinds(&root), [unnamed]);
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
    assert_eq!((machine::logical_cores(&root), machine::physical_cores(&root)), (Some(4), Some(4)));
    let kinds = machine::core_kinds(&root).into_iter().map(|k| (k.cores, k.capacity, k.max_khz));
    let expected = [
        (vec![2], Some(1024), Some(3_187_200)),
        (vec![3], Some(812), Some(2_803_200)),
        (vec![0, 1], Some(325), Some(2_016_000)),
    ];
    assert_eq!(kinds.collect::<Vec<_>>(), expected, "the fastest first");
    assert_eq!(process::peak_rss_bytes(&root), None);
    assert_eq!(machine::memory(&root).unwrap().available_bytes, None);
}

#[test]
fn a_tree_that_is_not_there_is_unknown_throughout() {
    let root = tree("no-such-tree");
    assert_eq!(process::peak_rss_bytes(&root), None);
    assert_eq!(process::rss_bytes(&root), None);
    assert_eq!(machine::cpu_name(&root), None);
    assert_eq!((machine::logical_cores(&root), machine::physical_cores(&root)), (None, None));
    assert_eq!(machine::core_kinds(&root), []);
    assert_eq!(machine::memory(&root), None);
}
