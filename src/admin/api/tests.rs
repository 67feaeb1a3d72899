//! What holds for all routes. What each does is seen through the public door, in `tests/admin.rs`.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::document::document;

/// The operations of the document, as `GET /path`.
fn operations(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().unwrap();
    let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let each = paths.iter().flat_map(|(path, item)| methods(item).into_iter().map(move |method| (method, path)));
    each.map(|(method, path)| format!("{} {path}", method.to_uppercase())).collect()
}

fn told() -> Value {
    serde_json::from_str(&document().to_json().unwrap()).unwrap()
}

#[test]
fn the_document_has_what_the_contract_promises() {
    let found = operations(&told());
    let promised = [
        "GET /healthz",
        "GET /readyz",
        "GET /admin/v1/accounts",
        "POST /admin/v1/accounts",
        "GET /admin/v1/accounts/{id}",
        "PATCH /admin/v1/accounts/{id}",
        "GET /admin/v1/accounts/{id}/credits",
        "POST /admin/v1/accounts/{id}/credits",
        "GET /admin/v1/accounts/{id}/keys",
        "POST /admin/v1/accounts/{id}/keys",
        "GET /admin/v1/keys",
        "GET /admin/v1/keys/{id}",
        "DELETE /admin/v1/keys/{id}",
        "GET /admin/v1/subscriptions",
        "GET /admin/v1/accounts/{id}/subscription",
        "POST /admin/v1/accounts/{id}/subscription",
        "PATCH /admin/v1/accounts/{id}/subscription",
        "DELETE /admin/v1/accounts/{id}/subscription",
        "GET /admin/v1/accounts/{id}/subscription/periods",
        "GET /admin/v1/voucher-batches",
        "POST /admin/v1/voucher-batches",
        "GET /admin/v1/voucher-batches/{id}",
        "DELETE /admin/v1/voucher-batches/{id}",
        "POST /admin/v1/accounts/{id}/vouchers",
        "GET /admin/v1/usage",
        "GET /admin/v1/models",
        "GET /admin/v1/plans",
        "GET /admin/v1/providers",
        "GET /admin/v1/audit",
        "GET /admin/v1/config",
        "GET /admin/v1/openapi.json",
    ];
    assert_eq!(found, promised.map(str::to_owned).into());
}

#[test]
fn every_route_is_put_in_with_its_description() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/api");
    let mut described = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        described += text.matches("#[utoipa::path(").count();
        assert!(!text.contains(".route(") && !text.contains(".route_service("), "{}", path.display());
    }
    assert_eq!(described, operations(&told()).len(), "one is described and not routed");
}

#[test]
fn whatever_a_document_refers_to_is_in_it() {
    let text = document().to_json().unwrap();
    let told = told();
    let mut referred = 0;
    for rest in text.split("\"#/components/schemas/").skip(1) {
        let name = rest.split('"').next().unwrap();
        assert!(told["components"]["schemas"][name].is_object(), "{name}");
        referred += 1;
    }
    assert!(referred > 20, "{text}");
    assert_eq!((&told["openapi"], &told["security"][0]), (&"3.1.0".into(), &serde_json::json!({"token": []})));
}
