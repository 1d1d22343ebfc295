//! Microsoft Entra ID: a registered application logs in with its secret (client credentials, RFC 6749, 4.4).

use http::Request;
use secrecy::{ExposeSecret as _, SecretString};

use super::{NAME, option};
use crate::{
    digest::Framed,
    error::Result,
    images::Pieces,
    provider::{Answer, Job, Login, Token, is_path_segment, oauth},
};

const AUTHORITY: &str = "https://login.microsoftonline.com";

/// What the reference asks for.
const SCOPE: &str = "https://cognitiveservices.azure.com/.default";

/// An application and where it logs in.
pub(super) struct Entra {
    endpoint: String,
    client_id: String,
    client_secret: SecretString,
    scope: String,
}

impl Entra {
    /// The application among the job's settings.
    ///
    /// # Errors
    /// A setting is missing, or the tenant is none.
    pub(super) fn of(job: &Job) -> Result<Self> {
        let required = |name: &str| {
            option(job, name).ok_or_else(|| oauth::unusable(name, "is required to log in by entra"))
        };
        let tenant = required("azure_entra_tenant_id")?;
        // It becomes part of the path that the secret is sent to.
        if !is_path_segment(tenant) {
            return Err(oauth::unusable("azure_entra_tenant_id", "has to be the id or a domain of a tenant"));
        }
        let authority = option(job, "azure_entra_authority").unwrap_or(AUTHORITY).trim_end_matches('/');
        Ok(Self {
            endpoint: format!("{authority}/{tenant}/oauth2/v2.0/token"),
            client_id: required("azure_entra_client_id")?.to_owned(),
            client_secret: required("azure_entra_client_secret")?.into(),
            scope: option(job, "azure_entra_scope").unwrap_or(SCOPE).to_owned(),
        })
    }
}

impl Login for Entra {
    fn account(&self) -> [u8; 32] {
        // With the secret itself: who only knows an application's id has no part in its token.
        let parts = [NAME, &self.endpoint, &self.client_id, self.client_secret.expose_secret(), &self.scope];
        parts.into_iter().collect::<Framed>().finish()
    }

    fn request(&self, _: &Job) -> Result<Request<Pieces>> {
        oauth::request(
            oauth::endpoint("azure_entra_authority", &self.endpoint)?,
            &[
                ("grant_type", "client_credentials"),
                ("client_id", &self.client_id),
                ("client_secret", self.client_secret.expose_secret()),
                ("scope", &self.scope),
            ],
        )
    }

    fn token(&self, answer: Answer) -> Result<Token> {
        oauth::token(NAME, &answer, self.client_secret.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use url::form_urlencoded;

    use super::*;
    use crate::{error::ErrorKind, pb};

    const APPLICATION: [(&str, &str); 3] = [
        ("azure_entra_tenant_id", "contoso.onmicrosoft.com"),
        ("azure_entra_client_id", "app-1"),
        ("azure_entra_client_secret", "s3c+ret"),
    ];

    fn job(changes: &[(&str, &str)]) -> Job {
        let options = APPLICATION.iter().chain(changes);
        Job {
            options: options.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..Job::new(pb::ImageRequest::default(), "https://unused.example")
        }
    }

    #[test]
    fn an_application_asks_its_tenant_for_the_scope() {
        let job = job(&[]);
        let request = Entra::of(&job).unwrap().request(&job).unwrap();
        assert_eq!(
            request.uri(),
            "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token"
        );
        let body = request.into_body().into_bytes();
        let form: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
        let form: Vec<(&str, &str)> =
            form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            form,
            [
                ("grant_type", "client_credentials"),
                ("client_id", "app-1"),
                ("client_secret", "s3c+ret"),
                ("scope", "https://cognitiveservices.azure.com/.default"),
            ]
        );
    }

    #[test]
    fn another_cloud_has_another_authority_and_scope() {
        let job = job(&[
            ("azure_entra_authority", "https://login.microsoftonline.us/"),
            ("azure_entra_scope", "https://cognitiveservices.azure.us/.default"),
        ]);
        let request = Entra::of(&job).unwrap().request(&job).unwrap();
        assert_eq!(
            request.uri(),
            "https://login.microsoftonline.us/contoso.onmicrosoft.com/oauth2/v2.0/token"
        );
        let body = request.into_body().into_bytes();
        assert!(body.ends_with(b"scope=https%3A%2F%2Fcognitiveservices.azure.us%2F.default"));
    }

    #[test]
    fn a_token_is_shared_by_those_who_have_the_same_secret_only() {
        let of = |changes: &[(&str, &str)]| Entra::of(&job(changes)).unwrap().account();
        let same = of(&[]);
        assert_eq!(of(&[("api_version", "v1")]), same);
        for change in [
            ("azure_entra_tenant_id", "other"),
            ("azure_entra_client_id", "app-2"),
            ("azure_entra_client_secret", "guessed"),
            ("azure_entra_scope", "https://other/.default"),
            ("azure_entra_authority", "https://other"),
        ] {
            assert_ne!(of(&[change]), same, "{change:?}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named_and_no_secret_shown() {
        for (name, value) in [
            ("azure_entra_tenant_id", ""),
            ("azure_entra_tenant_id", "a/b"),
            ("azure_entra_tenant_id", ".."),
            ("azure_entra_tenant_id", "a?b"),
            ("azure_entra_client_id", ""),
            ("azure_entra_client_secret", ""),
            ("azure_entra_authority", "ftp://a"),
            ("azure_entra_authority", "https://user:s3c+ret@a"),
        ] {
            let job = job(&[(name, value)]);
            let error = Entra::of(&job).and_then(|entra| entra.request(&job)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{value}");
            assert_eq!((error.kind, error.status), (ErrorKind::PermissionDenied, 401));
            assert!(!format!("{error:?}").contains("s3c+ret"));
        }
    }
}
