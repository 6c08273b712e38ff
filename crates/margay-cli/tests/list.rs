//! The list of families, and the page made of it.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail as the test does")]

mod program;

use program::run;
use std::path::Path;

#[test]
fn the_page_of_models_is_what_the_registry_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/models.md");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(
        page == run(["list", "--markdown"]).ok(),
        "docs/models.md is out of date: `cargo xtask models` writes it"
    );
}

#[test]
fn table_and_json_list_the_same_models() {
    let table = run(["list"]).ok();
    let json = run(["list", "--json"]).json();
    let families = json.as_array().unwrap();
    assert!(families.len() >= 5, "{json}");
    for family in families {
        let (id, verified) = (family["id"].as_str().unwrap(), family["verified"].as_str().unwrap());
        assert!(table.lines().any(|line| line.starts_with(id)), "{id} in {table}");
        assert!(table.contains(verified), "{verified}");
        for model in family["models"].as_array().unwrap() {
            let name = model["name"].as_str().unwrap();
            let line = table.lines().find(|line| line.contains(name));
            let line = line.unwrap_or_else(|| panic!("no {name} in {table}"));
            for part in ["vision", "projector", "decoder", "picture_tokens"] {
                assert!(line.contains(model[part].as_str().unwrap_or("-")), "{part} of {name} in {line}");
            }
        }
    }
    let llava = families.iter().find(|f| f["id"] == "llava").unwrap();
    assert_eq!(llava["models"][0]["picture_tokens"], "576");
}
