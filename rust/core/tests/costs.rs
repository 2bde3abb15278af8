//! Files that a new policy or a new register has to be told to: those that match on the parts of one, read in the sources.
//!
//! A file that carries a value, or names one in a sentence, has nothing to say to a new one. A list of files that grows
//! is a list that was written down twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rust files of every crate, by their paths below `rust/`.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let mut folders: Vec<PathBuf> =
        ["core", "linux", "model", "python"].iter().map(|name| root.join(name).join("src")).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace("/src/", "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 100, "the sources are read");
    found
}

/// Files with one of these texts outside of a comment.
fn with(texts: &[&str]) -> BTreeSet<String> {
    let says = |code: &str| {
        code.lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .any(|line| texts.iter().any(|text| line.contains(text)))
    };
    sources().into_iter().filter(|(_, code)| says(code)).map(|(name, _)| name).collect()
}

fn names<const N: usize>(files: [&str; N]) -> BTreeSet<String> {
    files.into_iter().map(str::to_owned).collect()
}

#[test]
fn a_policy_is_spelled_in_one_file_a_crate() {
    // What it is, what a plan makes of it, and its words; and the classes, with all that Python prints of them.
    let files = names(["core/restore/plan.rs", "core/restore/policy.rs", "core/restore/words.rs", "python/policy.rs"]);
    assert_eq!(with(&["Rest::", "AtOnce::"]), files);
    assert_eq!(with(&["PyFreeze", "PyAdvance", "PyCatchUp"]), names(["python/lib.rs", "python/policy.rs"]));
}

#[test]
fn a_register_is_asked_for_by_its_role_in_these_files() {
    // The table, its traps and the rules of the model: what a register that a guest keeps costs.
    let rules = ["core/arch/arm64/registers.rs", "core/arch/arm64/traps.rs", "model/vm.rs", "model/bank/vms.rs"];
    // Each of these looks for a register that it needs, and passes any other on as it is.
    let uses = [
        "core/arch/arm64/register_set.rs",
        "core/checkpoint/group.rs",
        "core/checkpoint/register_lists.rs",
        "core/drive/capture.rs",
        "core/drive/machine.rs",
        "core/drive/restore.rs",
        "core/drive/verify.rs",
        "core/restore/advice.rs",
        "core/restore/planning.rs",
        "linux/kvm/vm.rs",
        "python/errors.rs",
        "python/interchange.rs",
        "python/words.rs",
    ];
    assert_eq!(with(&["Role::"]), names(rules).union(&names(uses)).cloned().collect());
}
