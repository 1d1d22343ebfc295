//! Compiles `proto/` to Rust without protoc, and the data files of providers and prices from YAML to JSON: a process reads
//! all of them when it starts, which takes a tenth of the time then.

use std::{
    collections::HashSet,
    env,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;
use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Map, Number, Value};

/// Where data files are.
const DATA: [&str; 2] = ["src/provider", "src/prices"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");

    let descriptors = protox::compile(
        ["imagegate/v1/admin.proto", "imagegate/v1/router.proto", "imagegate/v1/worker.proto"],
        ["proto"],
    )?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut names = HashSet::new();
    for folder in DATA {
        println!("cargo:rerun-if-changed={folder}");
        compile_data(Path::new(folder), &out, &mut names)?;
    }
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

/// Writes each YAML file of a folder as JSON of the same name, which is none of `names`.
fn compile_data(folder: &Path, out: &Path, names: &mut HashSet<OsString>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            compile_data(&path, out, names)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let documents =
                Yaml::load_from_str(&fs::read_to_string(&path)?).map_err(|error| failed(&error))?;
            let [document] = documents.as_slice() else { return Err(failed(&"not one document").into()) };
            let name = path.file_stem().ok_or("a file without a name")?;
            let json = json(document).map_err(|error| failed(&error))?;
            if !names.insert(name.to_owned()) {
                return Err(failed(&"another data file has this name").into());
            }
            fs::write(out.join(name).with_extension("json"), json.to_string())?;
        }
    }
    Ok(())
}

fn json(node: &Yaml<'_>) -> Result<Value, &'static str> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::Number((*value).into()),
        Yaml::Value(Scalar::FloatingPoint(value)) => {
            Value::Number(Number::from_f64(value.into_inner()).ok_or("not a number")?)
        }
        Yaml::Value(Scalar::String(value)) => Value::String(value.to_string()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let entry = |(name, value)| match name {
                &Yaml::Value(Scalar::String(ref name)) => Ok((name.to_string(), json(value)?)),
                _ => Err("a key that is no text"),
            };
            Value::Object(entries.iter().map(entry).collect::<Result<Map<_, _>, _>>()?)
        }
        _ => return Err("something that data files do not have: a tag or an alias"),
    })
}
