//! Compiles `proto/` to Rust without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(
        ["imagegate/v1/admin.proto", "imagegate/v1/router.proto", "imagegate/v1/worker.proto"],
        ["proto"],
    )?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // An image is moved, never copied: decoding shares the receive buffer.
        .bytes(".imagegate.v1")
        // In order, so that the same message is always the same bytes, and can be known again by them.
        .btree_map(".imagegate.v1")
        .generate_default_stubs(false)
        // Clients connect through `src/pool`.
        .build_transport(false)
        // These carry prompts, images or credentials. Their `Debug` is written by hand in `src/pb.rs`.
        .skip_debug([
            ".imagegate.v1.Credential",
            ".imagegate.v1.Upstream",
            ".imagegate.v1.ImageRequest",
            ".imagegate.v1.InputImage",
            ".imagegate.v1.Mask",
            ".imagegate.v1.Image",
            ".imagegate.v1.PartialImage",
            ".imagegate.v1.ImageChunk",
            ".imagegate.v1.RequestRecord",
            ".imagegate.v1.SavedConfig",
            ".imagegate.v1.ConfigVersion",
            ".imagegate.v1.CreateConfigRequest",
            ".imagegate.v1.UpdateConfigRequest",
            ".imagegate.v1.CreateVirtualKeyRequest",
            ".imagegate.v1.UpdateVirtualKeyRequest",
            ".imagegate.v1.CreateApiKeyResponse",
            ".imagegate.v1.RotateApiKeyResponse",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
