//! What `{:?}` shows of things that hold credentials, prompts or images: a trace of somebody else's may print them.

use std::{collections::BTreeMap, sync::Arc};

use imagegate::{
    config::{
        self, Settings,
        quota::Quota,
        saved::{KeySecrets, Saved, SavedConfig, SavedKey},
        spec::Secret,
    },
    gateway,
    pb::{self, credential, input_image},
    router::{Router, State},
    store::{KeyChange, Logged, NewApiKey, NewVirtualKey},
    worker::Workers,
};
use prost::bytes::Bytes;

const MARKER: &str = "m4rker";

/// A secret that every other tells apart.
fn marked(name: &str) -> String {
    format!("{MARKER}-{name}-0123456789abcdef")
}

fn check(what: &str, shown: &str) {
    assert!(!shown.contains(MARKER), "{what} shows a secret: {shown}");
    // As numbers, as bytes are shown.
    let bytes = MARKER.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>();
    assert!(
        !shown.replace('\n', "").replace("    ", "").contains(&bytes.join(", ")),
        "{what} shows bytes: {shown}"
    );
}

fn settings() -> Settings {
    let environment = |name: &str| {
        Some(match name {
            "VAULT" => base64(format!("{MARKER}{}", "v".repeat(26))),
            "OLD_VAULT" => base64(format!("{MARKER}{}", "w".repeat(26))),
            "HOOK" => format!("whsec_{}", base64(format!("{MARKER}{}", "h".repeat(26)))),
            "REDIS" => format!("redis://user:{}@127.0.0.1/0", marked("redis")),
            "STORE" => format!("postgres://user:{}@127.0.0.1/db", marked("postgres")),
            "PLAIN" | "QUERY" | "AWS" | "CALLER" | "INLINE" | "EMBED" => marked(name),
            _ => return None,
        })
    };
    let yaml = "
virtual_keys:
  plain: {provider: openai, api_key: {env: PLAIN}, base_url: 'https://example.com/v1?key=${QUERY}'}
  aws: {provider: bedrock, aws_access_key_id: AKID, aws_secret_access_key: {env: AWS}, aws_region: us-east-1}
api_keys: [{name: a, key: {env: CALLER}}]
configs: {c: {provider: openai, api_key: '${INLINE}'}}
redis: {url: {env: REDIS}}
store: {url: {env: STORE}}
vault: {key: {env: VAULT}, previous_keys: [{env: OLD_VAULT}]}
webhooks: {secret: {env: HOOK}}
embeddings: {url: 'https://example.com/embed?key=${QUERY}', model: m, api_key: {env: EMBED}}
";
    config::read(yaml, &gateway::built_in(), &environment).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn base64(text: String) -> String {
    base64_simd::STANDARD.encode_to_string(text)
}

fn saved() -> Saved {
    let options = BTreeMap::from([("api_version".to_owned(), Secret::new(&marked("option")))]);
    Saved {
        virtual_keys: vec![SavedKey {
            tenant: "a".into(),
            slug: "vk".into(),
            provider: "openai".into(),
            base_url: String::new(),
            secrets: Some(KeySecrets { key: Some(Secret::new(&marked("stored"))), options }),
            is_disabled: false,
            expires_ms: None,
            quota: Quota::default(),
        }],
        configs: vec![SavedConfig {
            tenant: "a".into(),
            slug: "pc".into(),
            version: 1,
            content: format!("{{\"provider\": \"openai\", \"api_key\": \"{}\"}}", marked("inline")),
            is_default: false,
        }],
        ..Saved::default()
    }
}

#[test]
fn settings_show_no_secret() {
    let (settings, saved) = (settings(), saved());
    check("Saved", &format!("{saved:?} {saved:#?}"));
    check("Settings", &format!("{settings:?} {settings:#?}"));
    let built_in = gateway::built_in();
    let joined = Arc::new(settings.joined(&saved, &built_in, 0));
    assert!(joined.virtual_keys_of("a").contains_key("vk"), "nothing was joined");
    check("joined Settings", &format!("{joined:?} {joined:#?}"));
    let state = State::new(joined, Arc::new(Workers::default()), &built_in);
    check("State", &format!("{state:?} {state:#?}"));
    check("Router", &format!("{:?}", Router::new(state)));
}

#[test]
fn what_is_stored_shows_no_secret() {
    let secrets = || KeySecrets { key: Some(Secret::new(&marked("key"))), options: BTreeMap::new() };
    let new = NewVirtualKey {
        name: "n".into(),
        slug: String::new(),
        provider: "openai".into(),
        note: String::new(),
        base_url: String::new(),
        secrets: secrets(),
        expires_ms: None,
        quota: None,
    };
    check("NewVirtualKey", &format!("{new:?}"));
    check("KeyChange", &format!("{:?}", KeyChange { secrets: Some(secrets()), ..KeyChange::default() }));
    check(
        "NewApiKey",
        &format!("{:?}", NewApiKey { record: pb::ApiKey::default(), key: Secret::new(&marked("k")) }),
    );
    let record = pb::RequestRecord {
        prompt: marked("prompt"),
        asked: Some(image_request()),
        ..pb::RequestRecord::default()
    };
    check("Logged", &format!("{:?}", Logged { tenant: "a".into(), record }));
}

fn image_request() -> pb::ImageRequest {
    let input = |source| pb::InputImage { source: Some(source), ..pb::InputImage::default() };
    pb::ImageRequest {
        prompt: marked("prompt"),
        negative_prompt: marked("negative"),
        inputs: vec![
            input(input_image::Source::Data(Bytes::from(marked("input")))),
            input(input_image::Source::Url(format!("https://x/?sig={}", marked("signature")))),
        ],
        mask: Some(pb::Mask { data: marked("mask").into(), ..pb::Mask::default() }),
        ..pb::ImageRequest::default()
    }
}

#[test]
fn messages_show_no_secret() {
    let key = || marked("key");
    let config_json = format!("{{\"api_key\": \"{}\"}}", key());
    let upstream = pb::Upstream {
        base_url: format!("https://user:{}@x", key()),
        credential: Some(pb::Credential { credential: Some(credential::Credential::ApiKey(key())) }),
        headers: BTreeMap::from([("authorization".into(), key())]),
        options: BTreeMap::from([("aws_secret_access_key".into(), key())]),
        ..pb::Upstream::default()
    };
    let request = pb::GenerateRequest {
        image: Some(image_request()),
        upstream: Some(upstream),
        ..pb::GenerateRequest::default()
    };
    check(
        "GenerateRequest",
        &format!("{request:?} {:?}", request.image.as_ref().map(|image| (&image.inputs, &image.mask))),
    );
    check(
        "GenerateImageRequest",
        &format!("{:?}", pb::GenerateImageRequest { image: Some(image_request()) }),
    );
    let image = pb::Image { data: key().into(), revised_prompt: key(), ..pb::Image::default() };
    let result = pb::ImageResult { images: vec![image], ..pb::ImageResult::default() };
    check("GenerateImageResponse", &format!("{:?}", pb::GenerateImageResponse { result: Some(result) }));
    check("ImageChunk", &format!("{:?}", pb::ImageChunk { data: key().into(), ..pb::ImageChunk::default() }));
    check(
        "PartialImage",
        &format!("{:?}", pb::PartialImage { data: key().into(), ..pb::PartialImage::default() }),
    );
    let new = pb::CreateVirtualKeyRequest {
        key: key(),
        options: BTreeMap::from([("azure_ad_token".into(), key())]),
        ..pb::CreateVirtualKeyRequest::default()
    };
    check("CreateVirtualKeyRequest", &format!("{new:?}"));
    let change = pb::UpdateVirtualKeyRequest { key: Some(key()), ..pb::UpdateVirtualKeyRequest::default() };
    check("UpdateVirtualKeyRequest", &format!("{change:?}"));
    check(
        "CreateApiKeyResponse",
        &format!("{:?}", pb::CreateApiKeyResponse { key: key(), ..Default::default() }),
    );
    check(
        "RotateApiKeyResponse",
        &format!("{:?}", pb::RotateApiKeyResponse { key: key(), ..Default::default() }),
    );
    let new = pb::CreateConfigRequest { config_json: config_json.clone(), ..Default::default() };
    check("CreateConfigRequest", &format!("{new:?}"));
    let change = pb::UpdateConfigRequest { config_json: Some(config_json.clone()), ..Default::default() };
    check("UpdateConfigRequest", &format!("{change:?}"));
    let config = pb::SavedConfig { config_json: config_json.clone(), ..Default::default() };
    check("GetConfigResponse", &format!("{:?}", pb::GetConfigResponse { config: Some(config) }));
    let versions = vec![pb::ConfigVersion { config_json, ..Default::default() }];
    check("ListConfigVersionsResponse", &format!("{:?}", pb::ListConfigVersionsResponse { versions }));
}
