//! The rooms of every crate: no circle among the files, and no import against the order of the rooms.
//!
//! An edge is a path that starts with `crate`, `super` or `self`, in a `use` or anywhere else, from the file that has
//! it to the file that it leads to: the deepest one that it names. What `#[cfg(test)]` hides isn't looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// Rooms of a crate in their order: each imports only from itself and from those before it. A crate without an entry
/// has no order, and still no circle.
const ORDER: [(&str, &[&str]); 1] = [("core", &["sync", "time", "arch", "checkpoint", "guest", "restore", "drive"])];

/// A file's name in messages: its path below `src`, without the ending.
type File = String;

/// Files of a crate, and what each of them imports.
type Graph = BTreeMap<File, BTreeSet<File>>;

/// The module that a file is, as path segments: `mod.rs` is its folder, `lib.rs` the root.
fn module_of(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.split('/').map(str::to_owned).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib")) {
        path.pop();
    }
    path
}

/// The paths of one file that start in its own crate.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
    /// Inline modules that the visitor is in.
    within: Vec<String>,
    module: Vec<String>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        let mut base: Vec<String> = self.module.iter().chain(&self.within).cloned().collect();
        let mut rest = path;
        match rest.first().map(String::as_str) {
            Some("crate") => {
                base.clear();
                rest = &rest[1..];
            }
            Some("self") => rest = &rest[1..],
            Some("super") => {
                while rest.first().is_some_and(|segment| segment == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            _ => return,
        }
        base.extend(rest.iter().cloned());
        self.found.push(base);
    }

    fn tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
            syn::UseTree::Name(name) => self.leaf(before, &name.ident),
            syn::UseTree::Rename(rename) => self.leaf(before, &rename.ident),
            syn::UseTree::Glob(_) => self.add(before),
        }
    }

    fn leaf(&mut self, before: &[String], name: &syn::Ident) {
        let mut path = before.to_vec();
        if name != "self" {
            path.push(name.to_string());
        }
        // `mod x; pub use x::Y;`: a path without `self` may start at a child.
        if !matches!(path[0].as_str(), "crate" | "self" | "super") {
            path.insert(0, "self".to_owned());
        }
        self.add(&path);
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            self.within.push(module.ident.to_string());
            visit::visit_item_mod(self, module);
            self.within.pop();
        }
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        if !is_for_tests(&import.attrs) {
            self.tree(&import.tree, &mut Vec::new());
        }
    }

    /// `pub(super)` names who may import, not what is imported.
    fn visit_visibility(&mut self, _visibility: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    /// A macro's text isn't parsed as code: its paths are found by their tokens.
    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.visit_path(&called.path);
        self.tokens(&called.tokens.to_string());
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        self.tokens(&item.mac.tokens.to_string());
    }
}

impl Paths {
    fn tokens(&mut self, text: &str) {
        let text = text.replace(" :: ", "::");
        for word in text.split(|character: char| !character.is_alphanumeric() && character != '_' && character != ':') {
            if word.starts_with("crate::") {
                let path: Vec<String> = word.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
                self.add(&path);
            }
        }
    }
}

/// The graph of these files: name and text of each.
fn graph(files: &[(File, String)]) -> Graph {
    let modules: BTreeMap<Vec<String>, &File> = files.iter().map(|(file, _)| (module_of(file), file)).collect();
    let mut graph = Graph::new();
    for (file, text) in files {
        let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut paths = Paths { module: module_of(file), ..Paths::default() };
        paths.visit_file(&parsed);
        let edges = graph.entry(file.clone()).or_default();
        for path in paths.found {
            let lengths = (0..=path.len()).rev();
            let to = lengths.map(|length| &path[..length]).find_map(|module| modules.get(module));
            edges.extend(to.filter(|to| **to != file).map(|to| (*to).clone()));
        }
    }
    graph
}

/// Files that import each other in a circle: each group whole, found as what reaches itself.
fn circles(graph: &Graph) -> Vec<BTreeSet<File>> {
    let reached = |from: &File| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            next.extend(graph.get(file).into_iter().flatten().filter(|to| seen.insert((*to).clone())));
        }
        seen
    };
    let reach: BTreeMap<&File, BTreeSet<File>> = graph.keys().map(|file| (file, reached(file))).collect();
    let mut circles: Vec<BTreeSet<File>> = Vec::new();
    for (file, reaches) in &reach {
        if reaches.contains(*file) && !circles.iter().any(|circle| circle.contains(*file)) {
            let back = |other: &&File| reach.get(*other).is_some_and(|reaches| reaches.contains(*file));
            circles.push(reaches.iter().filter(back).cloned().collect());
        }
    }
    circles
}

/// A circle in words: each file, and what of the circle it imports.
fn described(circle: &BTreeSet<File>, graph: &Graph) -> Vec<String> {
    let line = |file: &File| {
        let within: Vec<&str> = graph[file].intersection(circle).map(String::as_str).collect();
        format!("{file} <- {}", within.join(", "))
    };
    circle.iter().map(line).collect()
}

/// Imports of a room from one that stands after it.
fn against(graph: &Graph, order: &[&str]) -> Vec<String> {
    let place = |file: &str| order.iter().position(|room| file.split('/').next() == Some(*room));
    let mut found = Vec::new();
    for (file, edges) in graph {
        for to in edges {
            match (place(file), place(to)) {
                (Some(from), Some(at)) if at > from => found.push(format!("{file} imports from {to}")),
                (None, _) if file != "lib" => found.push(format!("{file} stands in no room")),
                _ => {}
            }
        }
    }
    found
}

fn sources(of: &Path) -> Vec<(File, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![of.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|ending| ending == "rs") {
                let name = entry.strip_prefix(of).unwrap().with_extension("");
                files.push((name.to_str().unwrap().to_owned(), fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// The crates' names, and their graphs.
fn crates() -> Vec<(String, Graph)> {
    let rust = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut crates = Vec::new();
    for folder in fs::read_dir(rust).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.join("src").is_dir() {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            crates.push((name, graph(&sources(&folder.join("src")))));
        }
    }
    crates.sort();
    crates
}

#[test]
fn no_crate_has_a_circle() {
    let crates = crates();
    assert!(crates.len() >= 4, "{}", crates.len());
    for (name, graph) in crates {
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() >= graph.len() / 2, "{name}: imports are missing");
        let circles: Vec<_> = circles(&graph).iter().map(|circle| described(circle, &graph)).collect();
        assert!(circles.is_empty(), "rust/{name} has files that import each other in a circle: {circles:#?}");
    }
}

#[test]
fn no_room_imports_from_a_later_one() {
    let crates: BTreeMap<String, Graph> = crates().into_iter().collect();
    for (name, order) in ORDER {
        let graph = &crates[name];
        for room in order {
            assert!(graph.keys().any(|file| file.split('/').next() == Some(room)), "rust/{name} has no room {room}");
        }
        let against = against(graph, order);
        assert!(against.is_empty(), "rust/{name}: {against:#?}");
    }
}

/// The judge is judged: planted circles and imports against the order are found, however they are written.
#[test]
fn planted_faults_are_found() {
    let files = |texts: &[(&str, &str)]| -> Graph {
        graph(&texts.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect::<Vec<_>>())
    };
    let base = ("lib", "pub mod time; pub mod arch;");
    let folder = ("time/mod", "pub mod count; pub mod stamp; pub use count::Count;");
    let clean = files(&[
        base,
        folder,
        ("time/count", "pub(super) struct Count; #[cfg(test)] mod tests { use crate::arch::Timer; }"),
        ("time/stamp", "use crate::time::count::Count; pub struct Stamp(Count);"),
        ("arch", "use crate::time::{Count, stamp::Stamp}; pub struct Timer(Count, Stamp);"),
    ]);
    assert_eq!(circles(&clean), Vec::<BTreeSet<File>>::new());
    assert_eq!(against(&clean, &["time", "arch"]), Vec::<String>::new());
    assert_eq!(clean["arch"], BTreeSet::from(["time/mod".to_owned(), "time/stamp".to_owned()]));
    for planted in [
        "use crate::time::stamp::Stamp;",
        "use super::stamp::Stamp;",
        "use super::{stamp::{self as other}};",
        "use super::*;",
        "pub use crate::time::Count as Other;",
        "fn f() { let _ = crate::time::stamp::Stamp::new(); }",
        "fn f(_: &super::stamp::Stamp) {}",
        "mod inner { use super::super::stamp::Stamp; }",
        "macro_rules! m { () => { crate::time::stamp::f() }; }",
        "fn f() { println!(\"{}\", crate::time::stamp::X); }",
    ] {
        let found = files(&[
            base,
            folder,
            ("time/count", planted),
            ("time/stamp", "use crate::time::count::Count; pub struct Stamp(Count);"),
            ("arch", ""),
        ]);
        assert_eq!(circles(&found).len(), 1, "{planted}: {found:?}");
        assert!(circles(&found)[0].contains("time/count"), "{planted}");
    }
    let later = files(&[base, folder, ("time/count", "use crate::arch::Timer;"), ("time/stamp", ""), ("arch", "")]);
    assert_eq!(against(&later, &["time", "arch"]), ["time/count imports from arch"]);
    assert_eq!(against(&later, &["arch"]).len(), 2, "a file in no room");
}
