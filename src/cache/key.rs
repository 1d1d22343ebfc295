//! What makes two requests the same: a digest of everything that a provider is told, and of who asks.

use prost::Message as _;

use crate::{
    digest::{Framed, Images, hex, unhex},
    images::convert::Wish,
    pb,
};

/// The digest of a request, or of a group of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

/// What counts.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Who asks. Nobody gets what was made for another.
    pub caller: &'a str,
    /// A credential that came with the request: whoever brings another is another.
    pub credential: &'a str,
    /// Separates entries of one caller.
    pub namespace: &'a str,
    /// Who is asked.
    pub provider: &'a str,
    /// Where, and with which settings and forwarded headers. Its credential does not count: which of the
    /// operator's own keys pays makes no other image.
    pub upstream: &'a pb::Upstream,
    /// What is asked, after fitting: what a target does not take makes no difference at it.
    pub calls: &'a [pb::ImageRequest],
    /// What is done to the answer.
    pub wish: &'a Wish,
}

/// The key of a request, and the bucket of all that differ from it in nothing but the prompt.
pub fn of(parts: &Parts<'_>) -> (Key, Key) {
    let mut digest = Framed::default();
    for text in [parts.caller, parts.credential, parts.namespace, parts.provider] {
        digest.add(text);
    }
    // Our messages are encoded the same way every time: their maps are ordered (build.rs).
    // Who wrote the settings says how to log in with them, not what comes of it.
    digest
        .add(pb::Upstream { credential: None, from_caller: false, ..parts.upstream.clone() }.encode_to_vec());
    let Wish { format, compression, exact_size } = parts.wish;
    let size = exact_size.map(|size| (size.width, size.height));
    digest.add(format!("{:?}", (format.map(i32::from), compression, size)));
    let mut images = Images::default();
    for call in parts.calls {
        add_call(&mut digest, call, &mut images);
    }
    let bucket = Key(digest.finish());
    let mut digest = Framed::default();
    digest.add(bucket.0);
    for call in parts.calls {
        digest.add(&call.prompt);
    }
    (Key(digest.finish()), bucket)
}

/// Adds everything but the prompt.
fn add_call(digest: &mut Framed, call: &pb::ImageRequest, images: &mut Images) {
    let mut call = call.clone();
    call.prompt.clear();
    // How the request was to be fitted, which is done, and how its making is shown: the image is the same.
    call.params_policy = pb::ParamsPolicy::Unspecified.into();
    call.size_policy = pb::SizePolicy::Unspecified.into();
    call.partial_images = None;
    // What is left of something that was dropped.
    call.output = call.output.filter(|output| *output != pb::Output::default());
    images.replace_in(&mut call);
    call.provider_extras.retain(|_, extras| !extras.fields.is_empty());
    digest.add(call.encode_to_vec());
}

impl Key {
    /// The key that another process shows so.
    pub fn parse(shown: &str) -> Option<Self> {
        unhex(shown).map(Self)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
impl Key {
    /// A key for tests of its users.
    pub fn of_text(text: &str) -> Self {
        let mut digest = Framed::default();
        digest.add(text);
        Key(digest.finish())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost_types::{Struct, Value, value::Kind};

    use super::*;

    /// A request that has everything, whose maps were filled in this order.
    fn request(reversed: bool) -> pb::ImageRequest {
        let number = |n: f64| Value { kind: Some(Kind::NumberValue(n)) };
        let mut names: Vec<String> = (0..20).map(|i| format!("name-{i}")).collect();
        if reversed {
            names.reverse();
        }
        let extras =
            |n: usize| Struct { fields: names.iter().map(|name| (name.clone(), number(n as f64))).collect() };
        let mut provider_extras: Vec<_> = (0..20).map(|n| (format!("provider-{n}"), extras(n))).collect();
        if reversed {
            provider_extras.reverse();
        }
        pb::ImageRequest {
            model: "m".into(),
            prompt: "a cat".into(),
            n: Some(2),
            seed: Some(7),
            inputs: vec![pb::InputImage {
                source: Some(pb::input_image::Source::Data(Bytes::from(vec![1; 100]))),
                ..Default::default()
            }],
            mask: Some(pb::Mask { data: Bytes::from(vec![2; 100]), polarity: 0 }),
            provider_extras: provider_extras.into_iter().collect(),
            ..Default::default()
        }
    }

    fn upstream(reversed: bool) -> pb::Upstream {
        let mut names: Vec<_> = (0..20).map(|i| (format!("name-{i}"), i.to_string())).collect();
        if reversed {
            names.reverse();
        }
        pb::Upstream {
            headers: names.clone().into_iter().collect(),
            options: names.into_iter().collect(),
            ..Default::default()
        }
    }

    /// What is different in a request, by hand.
    struct Case {
        texts: [&'static str; 4],
        upstream: pb::Upstream,
        calls: Vec<pb::ImageRequest>,
        wish: Wish,
    }

    fn case() -> Case {
        Case { texts: [""; 4], upstream: upstream(false), calls: vec![request(false)], wish: Wish::default() }
    }

    fn keys(case: &Case) -> (Key, Key) {
        let [caller, credential, namespace, provider] = case.texts;
        let Case { upstream, calls, wish, .. } = case;
        of(&Parts { caller, credential, namespace, provider, upstream, calls, wish })
    }

    #[test]
    fn a_key_is_read_as_it_is_shown() {
        let key = Key::of_text("a");
        assert_eq!(Key::parse(&key.to_string()), Some(key));
        assert_eq!(Key::parse("a"), None);
        assert_eq!(Key::parse(&"é".repeat(32)), None);
    }

    #[test]
    fn the_order_in_which_maps_were_filled_makes_no_difference() {
        // Every map has a random order of its own, so one comparison would prove little.
        for _ in 0..20 {
            let other = Case { upstream: upstream(true), calls: vec![request(true)], ..case() };
            assert_eq!(keys(&case()), keys(&other));
        }
    }

    #[test]
    fn everything_that_a_provider_is_told_makes_a_difference() {
        type Change = fn(&mut Case);
        let changes: &[Change] = &[
            |case| case.texts[0] = "team-a",
            |case| case.texts[1] = "team-a",
            |case| case.texts[2] = "team-a",
            |case| case.texts[3] = "team-a",
            |case| case.upstream.base_url = "http://other".into(),
            |case| case.upstream.base_url_from_caller = true,
            |case| _ = case.upstream.headers.insert("name-1".into(), "x".into()),
            |case| _ = case.upstream.headers.remove("name-1"),
            |case| _ = case.upstream.options.insert("name-1".into(), "x".into()),
            |case| case.wish.format = Some(pb::ImageFormat::Png),
            |case| case.wish.compression = Some(0),
            |case| case.wish.exact_size = Some(pb::Dimensions::default()),
            |case| case.calls.push(request(false)),
            |case| case.calls[0].seed = None,
            |case| case.calls[0].n = None,
            |case| case.calls[0].model = "other".into(),
            |case| case.calls[0].negative_prompt = "a dog".into(),
            |case| _ = case.calls[0].provider_extras.insert("provider-1".into(), Struct::default()),
            |case| case.calls[0].inputs[0].source = None,
            |case| case.calls[0].inputs[0].source = Some(pb::input_image::Source::Url("http://x".into())),
            |case| {
                case.calls[0].inputs[0].source =
                    Some(pb::input_image::Source::Data(Bytes::from(vec![3; 100])));
            },
            |case| case.calls[0].mask.as_mut().unwrap().data = Bytes::from(vec![3; 100]),
            |case| case.calls[0].mask = None,
        ];
        let mut seen = vec![keys(&case())];
        for (i, change) in changes.iter().enumerate() {
            let mut case = case();
            change(&mut case);
            let (key, bucket) = keys(&case);
            assert!(seen.iter().all(|(k, b)| *k != key && *b != bucket), "change {i}");
            seen.push((key, bucket));
        }
    }

    #[test]
    fn only_the_prompt_stays_in_the_same_bucket() {
        let mut other = case();
        other.calls[0].prompt = "a dog".into();
        let ((key, bucket), (other_key, other_bucket)) = (keys(&case()), keys(&other));
        assert_eq!(bucket, other_bucket);
        assert_ne!(key, other_key);
    }

    #[test]
    fn how_a_request_was_fitted_and_which_of_our_keys_pays_make_no_difference() {
        let mut other = case();
        other.calls[0].params_policy = pb::ParamsPolicy::Drop.into();
        other.calls[0].size_policy = pb::SizePolicy::ResizeAfter.into();
        other.calls[0].partial_images = Some(3);
        other.calls[0].output = Some(pb::Output::default());
        other.calls[0].provider_extras.insert("emptied".into(), Struct::default());
        other.upstream.credential =
            Some(pb::Credential { credential: Some(pb::credential::Credential::ApiKey("sk-ours".into())) });
        assert_eq!(keys(&case()), keys(&other));
    }
}
