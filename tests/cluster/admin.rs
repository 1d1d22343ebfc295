//! Asks a role's admin listener: readiness, metrics and health over gRPC, each over a connection of its own.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

/// Longer means that nobody answers.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether it says that it is ready. Not to be reached is not to be ready.
pub async fn is_ready(admin: SocketAddr) -> bool {
    get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200)
}

/// The sum of a metric's values over all labels that contain `label`.
pub async fn metric(admin: SocketAddr, name: &str, label: &str) -> f64 {
    let (status, text) = get(admin, "/metrics").await.unwrap();
    assert_eq!(status, 200, "{text}");
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (this, labels) = series.split_once('{').unwrap_or((series, ""));
        (this == name && labels.contains(label)).then(|| value.parse::<f64>().ok())?
    });
    values.sum()
}

/// What its health service says of a service, as a native gRPC probe of Kubernetes asks.
///
/// # Errors
/// It does not know the service, or is not to be reached.
pub async fn health(admin: SocketAddr, service: &str) -> Result<ServingStatus, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{admin}")).unwrap().timeout(PATIENCE);
    let channel = endpoint.connect().await.map_err(|error| Status::from_error(error.into()))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let status = HealthClient::new(channel).check(request).await?.into_inner().status;
    ServingStatus::try_from(status).map_err(|error| Status::new(Code::Internal, error.to_string()))
}

/// Status and body.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, asked).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| io::Error::other(format!("no answer of HTTP: {head:?}")))?, body.to_owned()))
}
