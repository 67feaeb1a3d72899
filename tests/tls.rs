//! TLS on both sides: the listener with h2 and certificates that change, and upstreams whose certificate is not right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::setup::MODEL;
use support::tls::{Authority, Certified, connect};
use support::{Relay, Request, Setup, Upstream, h2c, until};

fn hello() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say hello"}]})
}

#[test]
fn the_listener_speaks_both_versions() {
    let upstream = Upstream::polite();
    let authority = Authority::new("of the relay");
    let relay = Setup::new(&upstream).https(&authority.certify("relay.test")).start();
    let request = Request::chat(&hello()).key(&relay.key);

    for offered in [&["http/1.1"][..], &[]] {
        let (mut connection, peer) = connect(relay.https, "relay.test", &authority.client(offered)).unwrap();
        assert_ne!(peer.protocol.as_deref(), Some("h2"));
        assert_eq!(connection.ask(&request).json()["choices"][0]["message"]["content"], "Hello there");
    }
    let answer = h2c::send_tls(&request, relay.https, "relay.test", &authority.client(&["h2", "http/1.1"]));
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello there");
    assert!(answer.header("x-request-id").is_some() && answer.header("x-ratelimit-limit").is_some());

    let mut streamed = hello();
    streamed["stream"] = json!(true);
    let streamed = Request::chat(&streamed).key(&relay.key);
    let answer = h2c::send_tls(&streamed, relay.https, "relay.test", &authority.client(&["h2"]));
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(relay.chat(&hello()).status, 200, "the cleartext listener is there as well");
}

#[test]
fn a_large_body_passes_over_h2() {
    let upstream = Upstream::polite();
    let authority = Authority::new("of the relay");
    let relay = Setup::new(&upstream).https(&authority.certify("relay.test")).start();
    let mut body = hello();
    body["messages"][0]["content"] = json!("y".repeat(5 * 1024 * 1024));
    let request = Request::chat(&body).key(&relay.key).chunked(100_000);
    let answer = h2c::send_tls(&request, relay.https, "relay.test", &authority.client(&["h2"]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let sent = upstream.only();
    sent.assert_framing();
    assert!(sent.json()["messages"] == body["messages"]);
}

fn shown(relay: &Relay, authority: &Authority) -> Vec<u8> {
    connect(relay.https, "relay.test", &authority.client(&[])).map(|(_, peer)| peer.certificate).unwrap_or_default()
}

#[test]
fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
    let upstream = Upstream::polite();
    let authority = Authority::new("of the relay");
    let (first, second) = (authority.certify("relay.test"), authority.certify("relay.test"));
    let relay = Setup::new(&upstream).https(&first).start();
    assert!(shown(&relay, &authority) == first.der());
    let (mut old, _) = connect(relay.https, "relay.test", &authority.client(&[])).unwrap();

    let renew = |certified: &Certified| {
        let (certificate, key) = certified.write(relay.folder(), "new");
        std::fs::rename(key, relay.folder().join("key.pem")).unwrap();
        std::fs::rename(certificate, relay.folder().join("cert.pem")).unwrap();
        relay.signal("HUP");
    };
    renew(&second);
    until("the renewed certificate", || (shown(&relay, &authority) == second.der()).then_some(()));
    assert_eq!(old.ask(&Request::chat(&hello()).key(&relay.key)).status, 200, "open connections go on");

    let refused = relay.metric("tollgate_config_reloads_total", &[("outcome", "refused")]);
    renew(&Certified { certificate: "not a certificate".into(), key: first.key.clone() });
    until("the refusal", || {
        (relay.metric("tollgate_config_reloads_total", &[("outcome", "refused")]) > refused + 0.5).then_some(())
    });
    assert!(shown(&relay, &authority) == second.der(), "the good one stays");
}

/// A relay before an upstream with that certificate; it trusts `trusted` and nobody else.
fn before(certified: &Certified, trusted: &Authority) -> (Upstream, Relay) {
    let upstream = Upstream::start_tls(certified.server(), |request, answer| answer.politely(request));
    let relay = Setup::new(&upstream).file("roots.pem", &trusted.pem());
    // The process starts in its own folder.
    (upstream, relay.env("SSL_CERT_FILE", "roots.pem").start())
}

#[test]
fn an_upstream_is_trusted_for_its_certificate_alone() {
    let (authority, stranger) = (Authority::new("trusted"), Authority::new("unknown"));
    let good = authority.certify("localhost");
    let bad = [
        ("an unknown authority", stranger.certify("localhost")),
        ("another name", authority.certify("elsewhere.test")),
        ("an end in the past", authority.certify_until("localhost", 2021)),
    ];
    let (upstream, relay) = before(&good, &authority);
    let answer = relay.chat(&hello());
    assert_eq!(answer.status, 200, "or the refusals below would prove nothing: {}", answer.text());
    assert_eq!(upstream.only().header("host"), Some(&*format!("localhost:{}", upstream.address.port())));
    for (what, certified) in bad {
        let (upstream, relay) = before(&certified, &authority);
        let answer = relay.chat(&hello());
        assert_eq!(answer.status, 502, "{what}: {}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "upstream_error", "{what}");
        assert_eq!(upstream.count(), 0, "{what}: a request, with the provider's key, reached the wrong server");
    }
}

#[test]
fn an_upstream_that_is_named_by_its_address_is_verified_too() {
    let authority = Authority::new("trusted");
    let certified = authority.certify("elsewhere.test");
    let upstream = Upstream::start_tls(certified.server(), |request, answer| answer.politely(request));
    let relay = Setup::bare()
        .provider("upstream", &format!("https://{}/v1", upstream.address))
        .file("roots.pem", &authority.pem())
        .env("SSL_CERT_FILE", "roots.pem")
        .start();
    assert_eq!(relay.chat(&hello()).status, 502);
    assert_eq!(upstream.count(), 0);
}
