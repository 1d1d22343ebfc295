//! What the scenarios build on holds by itself.

use std::{
    io::Cursor,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
    time::Duration,
};

use image::{ImageFormat, ImageReader};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use crate::{
    dns::Mood,
    picture::Size,
    scenario::{eventually, turn},
    site::{Place, Site},
};

#[test]
fn pictures_are_whole_and_no_two_labels_give_the_same() {
    for (size, side, least, most) in
        [(Size::Small, 256, 500, 1_500), (Size::Large, 1024, 1_900_000, 2_300_000)]
    {
        let [one, other] = ["a-000001", "a-000002"].map(|label| size.picture(label));
        assert_ne!(one, other);
        assert_eq!(one, size.picture("a-000001"));
        assert!((least..most).contains(&one.len()), "{size:?}: {} bytes", one.len());
        let decoded = ImageReader::with_format(Cursor::new(&one), ImageFormat::Png).decode().unwrap();
        assert_eq!((decoded.width(), decoded.height()), (side, side));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_find_names_and_a_partition_is_silent() {
    let _turn = turn().await;
    let Some(mut site) = Site::with_hosts("names and partitions").await else { return };
    let places: [Place; 2] = site.places();
    let name = "workers.cluster.test";
    assert_eq!(resolved(&places[0], name), [] as [IpAddr; 0]);
    let two: Vec<IpAddr> = places.iter().map(|place| place.address.into()).collect();
    site.dns().set(name, two.clone());
    assert_eq!(resolved(&places[0], name), two);
    let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    site.dns().set(name, both);
    assert_eq!(resolved(&places[1], name), both);
    site.dns().set_mood(Mood::Failing);
    assert_eq!(resolved(&places[0], name), [] as [IpAddr; 0]);
    site.dns().set_mood(Mood::Silent);
    let started = Instant::now();
    assert_eq!(resolved(&places[0], name), [] as [IpAddr; 0]);
    assert!(started.elapsed() > Duration::from_millis(900), "{:?}", started.elapsed());
    assert!(site.dns().asked(name) >= 6, "{}", site.dns().asked(name));

    // No process is needed for that: a host's kernel refuses connections to a port where nobody listens.
    let closed = places[0].at(9);
    assert!(TcpStream::connect(closed).await.unwrap_err().to_string().contains("refused"));
    let listener = TcpListener::bind((site.local, 0)).await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    site.partition(&places[0]);
    assert!(timeout(Duration::from_millis(1500), TcpStream::connect(closed)).await.is_err(), "not silent");
    assert!(TcpStream::connect(places[1].at(9)).await.unwrap_err().to_string().contains("refused"));
    site.heal(&places[0]);
    eventually("a host that is back", Duration::from_secs(5), async || {
        match timeout(Duration::from_millis(500), TcpStream::connect(closed)).await {
            Ok(Err(_refused)) => Ok(()),
            _ => Err("no answer"),
        }
    })
    .await;
}

/// As glibc does it at that place.
fn resolved(place: &Place, name: &str) -> Vec<IpAddr> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", place.namespace.as_deref().unwrap(), "getent", "ahosts", name]);
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let mut addresses: Vec<IpAddr> =
        text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
