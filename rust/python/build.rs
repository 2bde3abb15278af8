//! Sets the cfg `linux` where the binding has `guestclock-linux`: on Linux, unless the feature of that name is off. And has
//! zig link the system's unwinder.

use std::env::var;
use std::fs::write;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(linux)");
    println!("cargo::rerun-if-changed=build.rs");
    if var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") && var("CARGO_FEATURE_LINUX").is_ok() {
        println!("cargo::rustc-cfg=linux");
    }
    if let Ok(linker) = var("RUSTC_LINKER")
        && linker.contains("zigcc")
    {
        link_the_systems_unwinder(&linker);
    }
}

/// All functions of libgcc's unwinder: for one that isn't here, zig would link a part of its own with others in it.
const UNWINDER: &[&str] = &[
    "Backtrace",
    "DeleteException",
    "FindEnclosingFunction",
    "Find_FDE",
    "ForcedUnwind",
    "GetCFA",
    "GetDataRelBase",
    "GetGR",
    "GetIP",
    "GetIPInfo",
    "GetLanguageSpecificData",
    "GetRegionStart",
    "GetTextRelBase",
    "RaiseException",
    "Resume",
    "Resume_or_Rethrow",
    "SetGR",
    "SetIP",
];

/// Links a library that has nothing but libgcc's name and its functions', which are found when the module is loaded.
///
/// zig would put an unwinder of its own into the module. CPython ends a daemon thread by pthread_exit(3), which unwinds by
/// libgcc, and what one unwinder tells of a frame the other can't read: the process would crash.
fn link_the_systems_unwinder(linker: &str) {
    let folder = var("OUT_DIR").expect("cargo says where a build script may write");
    let (source, library) = (Path::new(&folder).join("unwinder.c"), Path::new(&folder).join("libgcc_s.so.1"));
    let functions: Vec<_> = UNWINDER.iter().map(|name| format!("void _Unwind_{name}(void) {{}}\n")).collect();
    write(&source, functions.concat()).expect("cargo's folder can be written to");
    let status = Command::new(linker)
        .args(["-shared", "-nostdlib", "-Wl,-soname,libgcc_s.so.1", "-o"])
        .args([&library, &source])
        .status();
    assert!(status.is_ok_and(|status| status.success()), "{linker} made no {}", library.display());
    println!("cargo::rustc-cdylib-link-arg={}", library.display());
}
