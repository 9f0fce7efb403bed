//! The house: arrows between its floors go down only, and tiny_http has one door.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// For each house, those it may know. What stands on the ground is a house of its own, by its name.
const ARROWS: [(&str, &[&str]); 8] = [
    ("cli", &["server", "client", "document", "sse", "ground"]),
    ("server", &["http", "hub", "document", "sse", "ground"]),
    ("http", &["document", "sse", "ground"]),
    ("hub", &["journal", "document", "sse", "ground"]),
    ("journal", &["sse", "ground"]),
    ("client", &["document", "sse", "ground"]),
    ("document", &["sse", "ground"]),
    ("sse", &["ground"]),
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Each file of the library: its house, its name and its code without comments.
fn sources() -> Vec<(String, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    files(&root)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let code: Vec<String> =
                fs::read_to_string(&path).unwrap().lines().filter(is_code).map(str::to_owned).collect();
            (house(name.split('/').next().unwrap().trim_end_matches(".rs")), name, code.join("\n"))
        })
        .collect()
}

/// The house of a module at the top of the crate.
fn house(module: &str) -> String {
    let houses = ARROWS.map(|(house, _)| house);
    if houses.contains(&module) || matches!(module, "lib" | "main") { module } else { "ground" }.to_owned()
}

/// The modules at the top of the crate that the code names, in `use` lines and elsewhere.
fn known(code: &str) -> BTreeSet<String> {
    let named = code.split("crate::").skip(1).flat_map(|rest| {
        let names = match rest.strip_prefix('{') {
            Some(group) => group.split_once('}').unwrap().0.split(", ").collect(),
            None => vec![rest],
        };
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        names.into_iter().map(move |name| name.trim_start().split(|letter| !is_name(letter)).next().unwrap())
    });
    // A type named in the docs or tests of the crate's root is no house.
    named.filter(|name| name.starts_with(|letter: char| letter.is_ascii_lowercase())).map(house).collect()
}

#[test]
fn houses_know_only_those_below_them() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (house, name, code) in sources() {
        if matches!(&*house, "lib" | "main") {
            continue;
        }
        let allowed = ARROWS.iter().find(|(from, _)| *from == house).map_or(&[][..], |(_, to)| *to);
        for other in known(&code) {
            seen += 1;
            if other != house && !allowed.contains(&&*other) {
                wrong.push(format!("{name} knows {other}"));
            }
        }
    }
    assert!(seen > 50, "{seen} arrows: the files are not read as they are written");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn nobody_but_http_names_tiny_http_or_its_allocator() {
    let outside = |(house, name, code): (String, String, String)| {
        let names = code.contains("tiny_http::") || code.contains("http::allocator");
        // The crate's root shows the allocator to programs.
        (house != "http" && name != "lib.rs" && names).then_some(name)
    };
    assert_eq!(sources().into_iter().filter_map(outside).collect::<Vec<_>>(), [""; 0]);
}
