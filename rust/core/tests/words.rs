//! Messages of the crates below the binding: they name facts and the field's terms, and no word of Python.

use proc_macro2::{TokenStream, TokenTree};
use std::fs;
use std::path::{Path, PathBuf};

/// Texts of the string literals, without docs and tests.
fn literals(tokens: TokenStream, found: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Literal(literal) => {
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    found.push(text.value());
                }
            }
            TokenTree::Group(group) => {
                let is = |token: Option<&TokenTree>, name: &str| matches!(token, Some(TokenTree::Ident(ident)) if ident == name);
                let first = group.stream().into_iter().next();
                let tests = at > 0 && is(tokens.get(at - 1), "tests");
                if !is(first.as_ref(), "doc") && !tests {
                    literals(group.stream(), found);
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// The word of Python in a message, if there is one: a keyword argument, a call, a name of Python's.
fn of_python(message: &str) -> Option<&'static str> {
    let words = |name: &str| message.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    // A kernel's argument is written so.
    let message = message.replace("kvm-arm.mode=nested", "");
    let mut before = ' ';
    for (at, c) in message.char_indices() {
        let next = message[at + 1..].chars().next();
        if c == '=' && (before.is_ascii_lowercase() || before == '_') && next != Some('=') {
            return Some("a keyword argument");
        }
        before = c;
    }
    if message.contains("()") {
        return Some("a call");
    }
    ["True", "False", "None", "__exit__", "ManualCounter", "ScaledCounter", "gic_fd"]
        .into_iter()
        .find(|name| words(name))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(sources(&entry));
        } else if entry.extension().is_some_and(|ending| ending == "rs") {
            files.push(entry);
        }
    }
    files
}

#[test]
fn no_message_speaks_python() {
    let rust = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut seen = 0;
    let mut bad = Vec::new();
    for file in ["core", "linux", "model"].iter().flat_map(|name| sources(&rust.join(name).join("src"))) {
        let mut found = Vec::new();
        literals(fs::read_to_string(&file).unwrap().parse().unwrap(), &mut found);
        seen += found.len();
        for message in found {
            if let Some(what) = of_python(&message) {
                bad.push(format!("{}: {what}: {message:?}", file.strip_prefix(rust).unwrap().display()));
            }
        }
    }
    assert!(seen > 300, "{seen} literals");
    assert!(bad.is_empty(), "{bad:#?}");
}

/// The judge is judged.
#[test]
fn planted_words_are_found() {
    for (text, expected) in [
        ("say so with elapsed=", "a keyword argument"),
        ("pass synchronized=True if you know", "a keyword argument"),
        ("use Freeze()", "a call"),
        ("leave the pause again (__exit__)", "__exit__"),
        ("over a ManualCounter", "ManualCounter"),
        ("it is None", "None"),
    ] {
        assert_eq!(of_python(text), Some(expected), "{text}");
    }
    for text in ["CNTFRQ_EL0 = 5 Hz", "started with kvm-arm.mode=nested", "a == b", "nothing"] {
        assert_eq!(of_python(text), None, "{text}");
    }
    let source = "/// Freeze()\n#[error(\"a {b} ()\")]\nstruct A; #[cfg(test)] mod tests { const X: &str = \"True\"; } fn f() { g!(\"z=\"); }";
    let mut found = Vec::new();
    literals(source.parse().unwrap(), &mut found);
    assert_eq!(found, ["a {b} ()", "z="]);
}
