//! Sets the cfg `linux` where the binding has `guestclock-linux`: on Linux, unless the feature of that name is off.

use std::env::var;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(linux)");
    println!("cargo::rerun-if-changed=build.rs");
    if var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") && var("CARGO_FEATURE_LINUX").is_ok() {
        println!("cargo::rustc-cfg=linux");
    }
}
