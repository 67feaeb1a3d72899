//! Requests, each as Anthropic gets it.

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::relay::refusal::Cause;
use crate::relay::route::{SchemaForm, Thinking};

/// The body that Anthropic gets, under the plain rules.
pub(in crate::relay::dialect::anthropic) fn translate(body: &Value) -> Result<Value, Refusal> {
    translate_by(body, &ModelRules::default()).map(|(body, _)| body)
}

/// The same under other rules, with what was dropped.
pub(super) fn translate_by(body: &Value, rules: &ModelRules) -> Result<(Value, Vec<String>), Refusal> {
    let chat = ChatRequest::parse(Bytes::from(body.to_string()))?;
    let outgoing = request(&chat, "claude", rules, 64_000)?;
    assert_eq!(&*outgoing.path, "/v1/messages");
    let sent = serde_json::from_slice(&outgoing.body).expect("no JSON");
    Ok((sent, outgoing.dropped.into_iter().map(String::from).collect()))
}

/// A request with these fields besides a question.
pub(super) fn with(fields: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

pub(super) fn say(messages: Value) -> Value {
    json!({"model": "m", "messages": messages})
}

/// Cause and parameter of a refusal.
pub(super) fn refused(body: &Value, rules: &ModelRules) -> (Cause, String) {
    let refusal = translate_by(body, rules).expect_err("not refused");
    assert_eq!(refusal.cause.status(), 400);
    (refusal.cause, refusal.param.expect("no parameter").into())
}

pub(super) fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"a": {}}}}})
}

fn sent_tool(name: &str) -> Value {
    json!({"name": name, "input_schema": {"type": "object", "properties": {"a": {}}}})
}

const PNG: &str = "iVBORw0KGgoAAAANSUhEUg==";

#[test]
fn a_plain_request_is_this() {
    let body = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}, "n": 1, "stop": ["a", " ", "b"],
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.30, "user": "u1", "service_tier": "default", "seed": 1,
        "logprobs": null, "modalities": ["text"], "metadata": {}, "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Ho"},
            {"role": "user", "content": [{"type": "text", "text": "Go on\n"}, {"type": "text", "text": " \n"}]}]});
    let (sent, dropped) = translate_by(&body, &ModelRules::default()).unwrap();
    let text = |text: &str| json!({"type": "text", "text": text});
    assert_eq!(
        sent,
        json!({"model": "claude", "max_tokens": 7, "stream": true, "temperature": 0.30, "stop_sequences": ["a", "b"],
            "metadata": {"user_id": "u1"}, "service_tier": "standard_only", "system": [text("Be brief."), text("Be kind.")],
            "messages": [{"role": "user", "content": [text("Hi")]}, {"role": "assistant", "content": [text("Ho")]},
                {"role": "user", "content": [text("Go on\n")]}]})
    );
    assert_eq!(dropped, ["metadata", "seed", "stop"]);
    let least = translate(&with(json!({}))).unwrap();
    assert_eq!((&least["max_tokens"], least.get("stream"), least.get("system")), (&json!(64_000), None, None));
    assert_eq!(translate(&with(json!({"max_tokens": 100_000}))).unwrap()["max_tokens"], 64_000);
}

#[test]
fn turns_are_put_together() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let user = |blocks: Value| json!({"role": "user", "content": blocks});
    for (messages, expected) in [
        // Of one role, one.
        (
            json!([{"role":"user","content":"a"},{"role":"user","content":"b"}]),
            json!([user(json!([text("a"), text("b")]))]),
        ),
        // The user first.
        (
            json!([{"role":"assistant","content":"a"},{"role":"user","content":"b"}]),
            json!([user(json!([text("(The assistant speaks first.)")])), {"role":"assistant","content":[text("a")]}, user(json!([text("b")]))]),
        ),
        // Only the operator: the last words are the user's.
        (
            json!([{"role":"system","content":"a"},{"role":"system","content":[{"type":"text","text":"b"},{"type":"text","text":"c"}]}]),
            json!([user(json!([text("b"), text("c")]))]),
        ),
        // What is silent is not there.
        (
            json!([{"role":"user","content":"a"},{"role":"assistant","content":null},{"role":"assistant","content":""},{"role":"user","content":"b"}]),
            json!([user(json!([text("a"), text("b")]))]),
        ),
        // A refusal is what was said.
        (
            json!([{"role":"user","content":"a"},{"role":"assistant","content":null,"refusal":"no"},{"role":"user","content":"b"}]),
            json!([user(json!([text("a")])), {"role":"assistant","content":[text("no")]}, user(json!([text("b")]))]),
        ),
    ] {
        assert_eq!(translate(&say(messages.clone())).unwrap()["messages"], expected, "{messages}");
    }
    assert_eq!(
        translate(&say(json!([{"role":"system","content":"a"},{"role":"system","content":"b"}]))).unwrap()["system"],
        json!([text("a")])
    );
}

#[test]
fn the_operator_may_speak_between_the_turns_where_the_model_lets_it() {
    let messages = say(
        json!([{"role":"system","content":"a"},{"role":"user","content":"b"},{"role":"system","content":"c"},{"role":"user","content":"d"}]),
    );
    let sent = translate(&messages).unwrap();
    assert_eq!((sent["system"].as_array().unwrap().len(), sent["messages"].as_array().unwrap().len()), (2, 1));
    let (sent, _) = translate_by(&messages, &ModelRules { system_turns: true, ..ModelRules::default() }).unwrap();
    assert_eq!(sent["system"].as_array().unwrap().len(), 1);
    assert_eq!(sent["messages"][1], json!({"role":"system","content":[{"type":"text","text":"c"}]}));
}

#[test]
fn calls_and_results_are_paired() {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"n\": 12345678901234567890123}"}});
    let messages = json!([
        {"role":"user","content":"a"},
        {"role":"assistant","content":"","tool_calls":[call("x:0"), call("y"), call("z")]},
        {"role":"tool","tool_call_id":"y","content":[{"type":"text","text":"ry"}]},
        {"role":"user","content":"then"},
        {"role":"tool","tool_call_id":"x:0","content":"","is_error":true},
        {"role":"assistant","content":null,"tool_calls":[call("x:0")]},
        {"role":"assistant","content":"so"},
        {"role":"user","content":"b"},
        {"role":"assistant","tool_calls":[{"id":"w","function":{"name":"g","arguments":""}}]},
    ]);
    let chat = ChatRequest::parse(Bytes::from(say(messages).to_string())).unwrap();
    let body = request(&chat, "m", &ModelRules::default(), 10).unwrap().body;
    // The digits are still there; a tree would not have them.
    assert_eq!(String::from_utf8_lossy(&body).matches(r#""input":{"n": 12345678901234567890123}"#).count(), 4);
    let sent: Value = serde_json::from_slice(&body).unwrap();
    let x = sent["messages"][1]["content"][0]["id"].as_str().unwrap().to_owned();
    assert!(x.starts_with("x_0_"), "{x}");
    let results = &sent["messages"][2]["content"];
    assert_eq!(results[0], json!({"type":"tool_result","tool_use_id":"y","content":[{"type":"text","text":"ry"}]}));
    assert_eq!(results[1], json!({"type":"tool_result","tool_use_id":x,"is_error":true}));
    assert_eq!((&results[2]["tool_use_id"], &results[2]["is_error"]), (&json!("z"), &json!(true)));
    assert_eq!(results[3], json!({"type":"text","text":"then"}));
    // The id that comes again is another, and its result, which is missing, is put in.
    assert_eq!(sent["messages"][3]["content"][0]["id"], json!(format!("{x}_2")));
    assert_eq!(sent["messages"][4]["content"][0]["tool_use_id"], json!(format!("{x}_2")));
    assert_eq!(sent["messages"][5]["content"], json!([{"type":"text","text":"so"}]));
    assert_eq!(sent["messages"][7]["content"], json!([{"type":"tool_use","id":"w","name":"g","input":{}}]));
    assert_eq!(sent["messages"][8]["content"][0]["tool_use_id"], "w");
    // The tools that the conversation speaks of are known, and not called.
    assert_eq!(sent["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect::<Vec<_>>(), ["f", "g"]);
    assert_eq!(sent["tool_choice"], json!({"type":"none"}));
}

#[test]
fn images_and_files_are_taken_for_what_they_are() {
    let block = |part: Value| {
        translate(&say(json!([{"role":"user","content":[part]}]))).map(|sent| sent["messages"][0]["content"][0].clone())
    };
    let image = |url: &str| json!({"type":"image_url","image_url":{"url":url,"detail":"low"}});
    let file = |data: &str| json!({"type":"file","file":{"file_data":data,"filename":"a.x"}});
    let base64 = |kind: &str, media_type: &str, data: &str| json!({"type":kind,"source":{"type":"base64","media_type":media_type,"data":data}});
    for (part, expected) in [
        (image(&format!("data:image/png;base64,{PNG}")), base64("image", "image/png", PNG)),
        // The bytes know better.
        (image(&format!("data:image/jpeg;base64,{PNG}")), base64("image", "image/png", PNG)),
        (image("https://a/b?c=\"d\""), json!({"type":"image","source":{"type":"url","url":"https://a/b?c=\"d\""}})),
        (
            json!({"type":"image_url","image_url":"http://a/b"}),
            json!({"type":"image","source":{"type":"url","url":"http://a/b"}}),
        ),
        (file(&format!("data:image/gif;base64,{PNG}")), base64("image", "image/png", PNG)),
        (
            file("data:application/pdf;base64,JVBERi0x"),
            json!({"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0x"},"title":"a.x"}),
        ),
        (
            file("data:text/markdown;base64,R3LDvMOfZQ=="),
            json!({"type":"document","source":{"type":"text","media_type":"text/plain","data":"Grüße"},"title":"a.x"}),
        ),
        (
            json!({"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":"1h"},"unknown":1}),
            json!({"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":"1h"}}),
        ),
    ] {
        assert_eq!(block(part.clone()).unwrap(), expected, "{part}");
    }
    let at = |field: &str| format!("messages[0].content[0]{field}");
    for (part, param) in [
        (image("data:image/png;base64,JVBERi0xLjMKJcTl8uXrpw=="), ".image_url.url"),
        (image("data:image/svg+xml,<svg>"), ".image_url.url"),
        (image("ftp://a/b"), ".image_url.url"),
        (json!({"type":"image_url"}), ".image_url"),
        (json!({"type":"image_url","image_url":{}}), ".image_url.url"),
        (file("data:application/zip;base64,AAAA"), ".file.file_data"),
        (file("data:text/plain;base64,/w=="), ".file.file_data"),
        (file("JVBERi0x"), ".file.file_data"),
        (json!({"type":"file","file":{"file_id":"f"}}), ".file.file_id"),
        (json!({"type":"file","file":{}}), ".file.file_data"),
        (json!({"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}), ".type"),
        (json!({"type":"image","source":{}}), ".type"),
        (json!({"type":"text"}), ".text"),
        (json!({"text":"a"}), ".type"),
        (json!(7), ""),
        (json!({"type":"text","text":"a","cache_control":1}), ".cache_control"),
    ] {
        let refusal = block(part.clone()).expect_err("not refused");
        assert_eq!(refusal.param.as_deref(), Some(&*at(param)), "{part}: {}", refusal.message);
    }
    let spoken = say(json!([{"role":"system","content":[image("https://a/b")]}]));
    assert_eq!(refused(&spoken, &ModelRules::default()).1, "messages[0].content[0].type");
}

#[test]
fn cache_marks_pass_where_they_may() {
    let mark = json!({"type": "ephemeral"});
    let mut marked = tool("f");
    marked["cache_control"] = mark.clone();
    let body = json!({"model":"m","tools":[tool("e"), marked],"messages":[
        {"role":"system","content":"a","cache_control":mark},
        {"role":"user","content":[{"type":"text","text":"b"},{"type":"text","text":" ","cache_control":mark}]},
        {"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"tool","tool_call_id":"c","content":"r","cache_control":mark},
        {"role":"user","content":[{"type":"text","text":"d","cache_control":mark}],"cache_control":{"type":"other"}},
    ]});
    let sent = translate(&body).unwrap();
    assert_eq!((sent["tools"][0].get("cache_control"), &sent["tools"][1]["cache_control"]), (None, &mark));
    assert_eq!(sent["system"][0]["cache_control"], mark);
    assert_eq!(sent["messages"][0]["content"], json!([{"type":"text","text":"b"}]));
    assert_eq!(sent["messages"][2]["content"][0]["cache_control"], mark);
    assert_eq!(sent["messages"][2]["content"][1]["cache_control"], mark);
    let parts: Vec<Value> = (0..5).map(|_| json!({"type":"text","text":"a","cache_control":mark})).collect();
    let refusal = refused(&say(json!([{"role":"user","content":parts}])), &ModelRules::default());
    assert_eq!(refusal.1, "messages[0].content[4].cache_control");
}

#[test]
fn tools_and_choices_are_translated() {
    let choose = |choice: Value, more: Value| {
        let mut body = with(json!({"tools": [tool("f"), tool("g")], "tool_choice": choice}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        translate(&body).unwrap()
    };
    for (choice, expected) in [
        (json!("auto"), Value::Null),
        (json!("required"), json!({"type":"any"})),
        (json!("none"), json!({"type":"none"})),
        (json!({"type":"function","function":{"name":"g"}}), json!({"type":"tool","name":"g"})),
    ] {
        let sent = choose(choice, json!({}));
        assert_eq!((&sent["tools"], &sent["tool_choice"]), (&json!([sent_tool("f"), sent_tool("g")]), &expected));
    }
    for (choice, expected) in [
        (json!(null), json!({"type":"auto","disable_parallel_tool_use":true})),
        (json!("required"), json!({"type":"any","disable_parallel_tool_use":true})),
        (json!("none"), json!({"type":"none"})),
    ] {
        assert_eq!(choose(choice, json!({"parallel_tool_calls": false}))["tool_choice"], expected);
    }
    let allowed = json!({"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"g"}}]}});
    let sent = choose(allowed, json!({}));
    assert_eq!((&sent["tools"], &sent["tool_choice"]), (&json!([sent_tool("g")]), &json!({"type":"any"})));
    let (sent, dropped) = translate_by(&with(json!({"tool_choice": "required"})), &ModelRules::default()).unwrap();
    assert_eq!((sent.get("tools"), sent.get("tool_choice"), dropped), (None, None, vec!["tool_choice".to_owned()]));
}

#[test]
fn a_tools_schema_says_that_it_is_an_object() {
    let schema = |function: Value| {
        let tool = json!({"type":"function","function":function});
        translate(&with(json!({"tools":[tool]}))).unwrap()["tools"][0].clone()
    };
    let none = json!({"name":"f","input_schema":{"type":"object","properties":{}}});
    assert_eq!(schema(json!({"name":"f","description":""})), none);
    assert_eq!(schema(json!({"name":"f","parameters":{}})), none);
    assert_eq!(schema(json!({"name":"f","parameters":null})), none);
    let described = schema(json!({"name":"f","description":"d","strict":true,"parameters":{"properties":{"a":{}}}}));
    assert_eq!(
        described,
        json!({"name":"f","description":"d","strict":true,"input_schema":{"type":"object","properties":{"a":{}}}})
    );
    assert_eq!(schema(json!({"name":"f","parameters":{"$ref":"#/x"}}))["input_schema"], json!({"$ref":"#/x"}));
    let strict: Vec<Value> =
        (0..22).map(|n| json!({"type":"function","function":{"name":format!("f{n}"),"strict":true}})).collect();
    let sent = translate(&with(json!({"tools": strict}))).unwrap();
    assert_eq!(sent["tools"].as_array().unwrap().iter().filter(|tool| tool["strict"] == true).count(), 20);
}

#[test]
fn an_answers_form_is_asked_for_as_the_model_can_be_asked() {
    let schema = json!({"type":"object","properties":{"a":{"type":"string"}}});
    let mut closed = schema.clone();
    closed["additionalProperties"] = json!(false);
    let format =
        json!({"type":"json_schema","json_schema":{"name":"n","strict":true,"description":"d","schema":schema}});
    let sent = translate(&with(json!({"response_format": format}))).unwrap();
    assert_eq!(sent["output_config"], json!({"format":{"type":"json_schema","schema":closed}}));

    let forced = ModelRules { schema: SchemaForm::ForcedTool, ..ModelRules::default() };
    let (sent, _) = translate_by(&with(json!({"response_format": format})), &forced).unwrap();
    assert_eq!(sent["tools"], json!([{"name":"answer_in_json_schema","description":"d","input_schema":schema}]));
    assert_eq!(
        (&sent["tool_choice"], sent.get("output_config")),
        (&json!({"type":"tool","name":"answer_in_json_schema"}), None)
    );
    for (choice, expected, tools) in [
        (json!("auto"), json!({"type":"any"}), 2),
        (json!("required"), json!({"type":"any"}), 1),
        (json!("none"), json!({"type":"tool","name":"answer_in_json_schema"}), 2),
    ] {
        let body = with(json!({"response_format": format, "tools": [tool("f")], "tool_choice": choice}));
        let (sent, _) = translate_by(&body, &forced).unwrap();
        assert_eq!((&sent["tool_choice"], sent["tools"].as_array().unwrap().len()), (&expected, tools));
    }
    let never = ModelRules { schema: SchemaForm::None, ..ModelRules::default() };
    assert_eq!(refused(&with(json!({"response_format": format})), &never).1, "response_format");

    let sent = translate(&with(json!({"response_format": {"type": "json_object"}}))).unwrap();
    assert!(sent["system"][0]["text"].as_str().unwrap().contains("JSON"));
    assert_eq!(
        translate(&with(json!({"response_format": {"type": "text"}}))).unwrap(),
        translate(&with(json!({}))).unwrap()
    );
}

#[test]
fn thinking_is_taken_back_as_it_was() {
    let blocks = json!([
        {"type":"thinking","thinking":"a\n\"é\u{1}","signature":"EqQB+/==","index":0},
        {"type":"redacted_thinking","data":"xyz"},
        {"type":"thinking","thinking":"","signature":"only signed","cache_control":{"type":"ephemeral"}},
        {"type":"thinking","thinking":"never signed"},
        {"type":"reasoning.text","text":"another's"},
    ]);
    let message = json!({"role":"assistant","content":"b","reasoning_content":"a","thinking_blocks":blocks});
    let sent = translate(&say(json!([{"role":"user","content":"q"}, message, {"role":"user","content":"r"}]))).unwrap();
    assert_eq!(
        sent["messages"][1]["content"],
        json!([{"type":"thinking","thinking":"a\n\"é\u{1}","signature":"EqQB+/=="}, {"type":"redacted_thinking","data":"xyz"},
            {"type":"thinking","thinking":"","signature":"only signed"}, {"type":"text","text":"b"}])
    );
}

#[test]
fn the_assistants_last_words_are_gone_on_with_where_the_model_does() {
    let body = say(json!([{"role":"user","content":"a"},{"role":"assistant","content":"so \n\t"}]));
    assert_eq!(refused(&body, &ModelRules::default()).1, "messages");
    let rules = ModelRules { prefill: true, thinking: Thinking::Adaptive { xhigh: false }, ..ModelRules::default() };
    let (sent, _) = translate_by(&body, &rules).unwrap();
    assert_eq!(sent["messages"][1]["content"], json!([{"type":"text","text":"so"}]));
    let mut thinking = body;
    thinking["reasoning_effort"] = json!("low");
    assert_eq!(refused(&thinking, &rules).1, "messages");
}

#[test]
fn what_cannot_be_said_is_refused_with_its_place() {
    let plain = ModelRules::default();
    let call = |call: Value| say(json!([{"role":"user","content":"a"},{"role":"assistant","tool_calls":[call]}]));
    let arguments =
        |arguments: &str| call(json!({"id":"c","type":"function","function":{"name":"f","arguments":arguments}}));
    for (body, param) in [
        (with(json!({"n": 2})), "n"),
        (with(json!({"functions": []})), "functions"),
        (with(json!({"function_call": "auto"})), "function_call"),
        (with(json!({"temperature": 3})), "temperature"),
        (with(json!({"temperature": "hot"})), "temperature"),
        (with(json!({"top_p": -0.1})), "top_p"),
        (with(json!({"stop": 1})), "stop"),
        (with(json!({"stop": ["a", 1]})), "stop[1]"),
        (with(json!({"user": 1})), "user"),
        (with(json!({"parallel_tool_calls": 1})), "parallel_tool_calls"),
        (with(json!({"response_format": {"type": "xml"}})), "response_format.type"),
        (with(json!({"response_format": {"type": "json_schema"}})), "response_format.json_schema"),
        (
            with(json!({"response_format": {"type": "json_schema", "json_schema": {}}})),
            "response_format.json_schema.schema",
        ),
        (with(json!({"tools": {}})), "tools"),
        (with(json!({"tools": [{"type": "custom", "custom": {}}]})), "tools[0].type"),
        (with(json!({"tools": [{"type": "function"}]})), "tools[0].function"),
        (with(json!({"tools": [{"type": "function", "function": {}}]})), "tools[0].function.name"),
        (
            with(json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": true}}]})),
            "tools[0].function.parameters",
        ),
        (with(json!({"tools": [tool("answer_in_json_schema")]})), "tools[0].function.name"),
        (with(json!({"tools": [tool("f")], "tool_choice": "some"})), "tool_choice"),
        (
            with(json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}})),
            "tool_choice.function.name",
        ),
        (with(json!({"tools": [tool("f")], "tool_choice": {"type": "custom"}})), "tool_choice.type"),
        (say(json!([{"role": "user", "content": " "}])), "messages"),
        (say(json!([{"role": "user"}])), "messages[0].content"),
        (say(json!([{"role": "user", "content": 1}])), "messages[0].content"),
        (say(json!([{"role": "function", "name": "f", "content": "r"}])), "messages[0].role"),
        (say(json!([{"role": "narrator", "content": "r"}])), "messages[0].role"),
        (say(json!([{"role": "tool", "content": "r"}])), "messages[0].tool_call_id"),
        (
            say(json!([{"role": "user", "content": "a"}, {"role": "tool", "tool_call_id": "c", "content": "r"}])),
            "messages[1].tool_call_id",
        ),
        (say(json!([{"role": "assistant", "content": null, "function_call": {}}])), "messages[0].function_call"),
        (arguments("[1]"), "messages[1].tool_calls[0].function.arguments"),
        (arguments("{\"a\":"), "messages[1].tool_calls[0].function.arguments"),
        (call(json!({"id":"c","type":"custom","custom":{}})), "messages[1].tool_calls[0].type"),
        (call(json!({"type":"function","function":{"name":"f"}})), "messages[1].tool_calls[0].id"),
        (call(json!({"id":"c","type":"function","function":{}})), "messages[1].tool_calls[0].function.name"),
    ] {
        assert_eq!(refused(&body, &plain).1, param, "{body}");
    }
}
