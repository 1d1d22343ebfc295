//! `images`: where images are kept that can be fetched later, in a folder or in a bucket.

use std::{path::PathBuf, time::Duration};

use url::Url;

use super::{read::Object, spec::Secret};

/// Where images are kept.
#[derive(Clone, Debug)]
pub struct ImagesSettings {
    /// In a folder or a bucket.
    pub place: Place,
    /// How long the place may take for one image, all tries together.
    pub timeout: Duration,
}

/// In a folder or a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Made when the first image is kept.
    Folder(PathBuf),
    /// S3, or a server that speaks its language.
    Bucket(Bucket),
}

/// A bucket and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// The bucket's name.
    pub name: String,
    /// Begins the name of everything in it; without slashes at its ends, empty: nothing does.
    pub prefix: String,
    /// None: what `AWS_REGION` says, else `us-east-1`.
    pub region: Option<String>,
    /// Another server than that of AWS.
    pub endpoint: Option<String>,
    /// The endpoint may be spoken to in plain text.
    pub allow_http: bool,
    /// The bucket is the first part of the host and not of the path.
    pub virtual_hosted: bool,
    /// None: what AWS' own clients would find.
    pub credentials: Option<Credentials>,
}

/// Who reads and writes a bucket.
#[derive(Clone)]
pub struct Credentials {
    /// Its public half.
    pub access_key_id: Secret,
    /// Its secret half.
    pub secret_access_key: Secret,
}

/// How long the place may take where nobody says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(10);

const WRONG_URL: &str = "not allowed; allowed: s3://BUCKET/PREFIX or file:///FOLDER";

/// What AWS' own clients read from the environment: keys, the token of a service account, of a pod or a task, region
/// and servers.
const USUAL_VARIABLES: [&str; 14] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

impl ImagesSettings {
    /// Images in the folder `images` of `data_dir`.
    pub fn below(data_dir: &std::path::Path) -> Self {
        Self { place: Place::Folder(data_dir.join("images")), timeout: TIMEOUT }
    }

    /// Reads the file's `images`.
    pub fn read(object: Option<Object<'_>>, data_dir: &std::path::Path) -> Self {
        let mut settings = Self::below(data_dir);
        let Some(mut object) = object else { return settings };
        settings.timeout = object.millis("timeout_ms").unwrap_or(TIMEOUT);
        let place = object.text("url").map(Place::parse);
        if let Some(Err(message)) = &place {
            object.problem("url", *message);
        }
        let fields = Bucket {
            region: object.text("region").map(str::to_owned),
            endpoint: object.text("endpoint").map(|url| url.trim_end_matches('/').to_owned()),
            allow_http: object.flag("allow_http").unwrap_or_default(),
            virtual_hosted: object.flag("virtual_hosted").unwrap_or_default(),
            credentials: read_credentials(&mut object),
            ..Bucket::default()
        };
        match place {
            Some(Ok(Place::Bucket(Bucket { name, prefix, .. }))) => {
                let bucket = Bucket { name, prefix, ..fields };
                if let Err((field, message)) = bucket.check() {
                    object.problem(field, message);
                }
                settings.place = Place::Bucket(bucket);
            }
            Some(Ok(folder)) => settings.place = folder,
            Some(Err(_)) | None => {}
        }
        if !matches!(settings.place, Place::Bucket(_)) && object.text("url").is_none_or(is_folder) {
            let of_buckets =
                ["region", "endpoint", "allow_http", "virtual_hosted", "access_key_id", "secret_access_key"];
            for field in of_buckets.into_iter().filter(|field| object.has(field)) {
                object.problem(field, "only a bucket has this: url is s3://BUCKET/PREFIX then");
            }
        }
        object.finish();
        settings
    }
}

impl Place {
    /// The place that a URL names; of a bucket, the name and the prefix.
    ///
    /// # Errors
    /// It names none.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| WRONG_URL)?;
        let has_more = url.query().is_some()
            || url.fragment().is_some()
            || url.port().is_some()
            || !url.username().is_empty()
            || url.password().is_some();
        if has_more {
            return Err(WRONG_URL);
        }
        match url.scheme() {
            // Of a path that is not absolute, the first part would be taken for a host.
            "file" if url.host().is_none() => match url.to_file_path() {
                Ok(folder) if folder.parent().is_some() => Ok(Self::Folder(folder)),
                _ => Err(WRONG_URL),
            },
            "s3" => {
                let name = url.host_str().filter(|name| is_bucket(name)).ok_or(WRONG_URL)?;
                let prefix = url.path().trim_matches('/');
                if prefix.split('/').any(|part| part.is_empty() && !prefix.is_empty()) {
                    return Err(WRONG_URL);
                }
                Ok(Self::Bucket(Bucket {
                    name: name.to_owned(),
                    prefix: prefix.to_owned(),
                    ..Bucket::default()
                }))
            }
            _ => Err(WRONG_URL),
        }
    }
}

impl Bucket {
    /// Whether its fields fit together.
    ///
    /// # Errors
    /// The field that does not, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let url = Url::parse(endpoint).ok().filter(|url| url.host().is_some() && url.username().is_empty());
        match url.as_ref().map(Url::scheme) {
            Some("https") => Ok(()),
            Some("http") if self.allow_http => Ok(()),
            Some("http") => {
                Err(("endpoint", "http is plain text: write https, or allow_http: true".to_owned()))
            }
            _ => Err(("endpoint", "not allowed; allowed: https://HOST:PORT".to_owned())),
        }
    }
}

/// What AWS' own clients would find: names of variables in lower case, with their values.
pub fn usual_variables() -> Vec<(String, Secret)> {
    let found = USUAL_VARIABLES.iter().filter_map(|name| {
        let value = super::environment(name).filter(|value| !value.is_empty())?;
        Some((name.to_ascii_lowercase(), Secret::new(&value)))
    });
    found.collect()
}

fn read_credentials(object: &mut Object<'_>) -> Option<Credentials> {
    let mut half = |name: &str| object.text(name).filter(|text| !text.is_empty()).map(Secret::new);
    let (id, secret) = (half("access_key_id"), half("secret_access_key"));
    match (id, secret) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Some(Credentials { access_key_id, secret_access_key })
        }
        (None, None) => None,
        (id, _) => {
            let missing = if id.is_some() { "secret_access_key" } else { "access_key_id" };
            // One that is there and could not be filled in has been reported.
            if !object.has(missing) {
                object.problem(missing, "Required: an access key has two halves");
            }
            None
        }
    }
}

fn is_folder(url: &str) -> bool {
    url.starts_with("file:")
}

/// By the rules of today's S3 and the looser ones of its first years, which other servers still have.
fn is_bucket(name: &str) -> bool {
    (3..=255).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        use secrecy::ExposeSecret as _;
        let halves = |credentials: &Self| {
            [&credentials.access_key_id, &credentials.secret_access_key]
                .map(|half| half.0.expose_secret().to_owned())
        };
        halves(self) == halves(other)
    }
}

impl Eq for Credentials {}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::read::Problems;

    fn read(value: &Value) -> Result<ImagesSettings, Vec<String>> {
        let problems = Problems::default();
        let object = Object::open(value, "images", &problems);
        let settings = ImagesSettings::read(object, std::path::Path::new("/data"));
        let problems: Vec<_> = problems.into_vec().iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    #[test]
    fn images_are_in_the_data_folder_unless_another_place_is_named() {
        let place = |value: Value| read(&value).unwrap().place;
        assert_eq!(place(json!({})), Place::Folder("/data/images".into()));
        assert_eq!(
            place(json!({"url": "file:///srv/my%20images/"})),
            Place::Folder("/srv/my images/".into())
        );
        let bucket = |prefix: &str| {
            Place::Bucket(Bucket { name: "My_bucket.1".into(), prefix: prefix.into(), ..Bucket::default() })
        };
        assert_eq!(place(json!({"url": "s3://My_bucket.1"})), bucket(""));
        assert_eq!(place(json!({"url": "s3://My_bucket.1/a/b/"})), bucket("a/b"));
    }

    #[test]
    fn a_place_that_is_none_is_refused() {
        for url in [
            "bucket",
            "/srv/images",
            "file://srv/images",
            "file:///",
            "s3://",
            "s3://b",
            "s3://bucket/a//b",
            "s3://bucket:80/a",
            "s3://user:secret@bucket/a",
            "s3://bucket?x=1",
            "https://bucket.s3.amazonaws.com",
            "gs://bucket",
        ] {
            let problems = read(&json!({"url": url})).unwrap_err();
            assert_eq!(problems, [format!("images.url: {WRONG_URL}")], "{url}");
        }
    }

    #[test]
    fn a_bucket_says_how_it_is_reached_and_does_not_show_its_keys() {
        let value = json!({
            "url": "s3://bucket", "region": "eu-central-1", "endpoint": "http://minio:9000/", "allow_http": true,
            "access_key_id": "marker-id", "secret_access_key": "marker-secret", "timeout_ms": 500,
        });
        let settings = read(&value).unwrap();
        assert_eq!(settings.timeout, Duration::from_millis(500));
        let Place::Bucket(bucket) = &settings.place else { panic!("{settings:?}") };
        assert_eq!(bucket.endpoint.as_deref(), Some("http://minio:9000"));
        assert!(bucket.credentials.is_some());
        assert!(!format!("{settings:?}").contains("marker"), "{settings:?}");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for (more, field) in [
            (json!({"endpoint": "http://minio:9000"}), "endpoint"),
            (json!({"endpoint": "minio:9000"}), "endpoint"),
            (json!({"endpoint": "https://user@minio"}), "endpoint"),
            (json!({"access_key_id": "a"}), "secret_access_key"),
            (json!({"secret_access_key": "a"}), "access_key_id"),
            (json!({"url": "file:///srv/images", "region": "eu-central-1"}), "region"),
            (json!({"url": null, "endpoint": "https://minio"}), "endpoint"),
            (json!({"bucket": "b"}), "bucket"),
        ] {
            let mut value = json!({"url": "s3://bucket"});
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let problems = read(&value).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(&format!("images.{field}: ")), "{problems:?}");
        }
    }
}
