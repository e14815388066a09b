//! `control.schema.json`: the control socket for those who do not read Rust, as an OpenRPC document. It is made here out of the
//! types that are sent, and a test holds the committed file to it; `UPDATE_EXPECT=1 cargo test` writes it anew.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::dispatch::METHODS;
use super::schema::{
    Create, Dep, ErrorData, Info, Line, Load, Loaded, Message, Query, Remove, Removed, Rename, Reply, Resume, Resumed,
    StatsQuery, Suspend, TargetType, Version, Wait, Waiting, Which,
};
use super::{MAX_CLIENTS, MAX_LINE, VARIABLE, wire};
use crate::stats::Snapshot;

/// Where the types stand.
const TYPES: &str = "/components/schemas";

fn description() -> String {
    format!(
        "The control socket of a vhost-user-dm process (--control-path=PATH): a Unix stream socket of mode 0600 for root and the \
         user of the process; the peer's credentials are checked. Clients find it by --control-path or {VARIABLE}.\n\n\
         Framing: JSON-RPC 2.0, UTF-8, one message a line, each ended by a line feed. A line has at most {MAX_LINE} bytes \
         without its end; a longer one is answered with {too_long} and ends the connection. Batches are refused. A request \
         without id is a notification: it is done and not answered. Requests of a connection are done one after the other, \
         in order; at most {MAX_CLIENTS} connections at a time. A client that takes none of its answers for 10 seconds is hung \
         up on. A client that hangs up takes back what it waits for (what is done by then stays done); one that only shuts down \
         its sending side still gets its answers.\n\n\
         Errors: a positive code is the errno of a verb, with ErrorData as data and strerror(3)'s words as message. Negative \
         ones: {parse} not JSON, or a last line without end; {request} no request; {method} no such method; {params} wrong \
         parameters; {internal} an answer that is no JSON; {too_long} line too long; {clients} too many clients; \
         {permitted} not permitted.\n\n\
         Names and uuids are in the kernel's form: bytes other than 0-9A-Za-z#+-.:=@_ as \\xNN. Sectors have 512 bytes. \
         While suspend, resume and others wait, about every second a notification waiting comes before the answer.",
        too_long = wire::LINE_TOO_LONG,
        parse = wire::PARSE_ERROR,
        request = wire::INVALID_REQUEST,
        method = wire::METHOD_NOT_FOUND,
        params = wire::INVALID_PARAMS,
        internal = wire::INTERNAL_ERROR,
        clients = wire::TOO_MANY_CLIENTS,
        permitted = wire::NOT_PERMITTED,
    )
}

struct Document {
    types: SchemaGenerator,
    methods: Vec<Value>,
}

impl Document {
    fn method<P: JsonSchema, R: JsonSchema>(&mut self, name: &str, summary: &str) {
        self.types.subschema_for::<P>();
        let of = self.types.definitions().get(P::schema_name().as_ref()).cloned().unwrap_or_default();
        let required = |name: &str| of["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        let none = Map::new();
        let properties = of["properties"].as_object().unwrap_or(&none);
        let param =
            |(name, schema): (&String, &Value)| json!({"name": name, "required": required(name), "schema": schema});
        let params: Vec<Value> = properties.iter().map(param).collect();
        let schema = self.types.subschema_for::<R>();
        self.methods.push(json!({
            "name": name,
            "summary": summary,
            "paramStructure": "by-name",
            "params": params,
            "result": {"name": "result", "schema": schema},
        }));
    }
}

/// Of a method that has none.
#[derive(JsonSchema)]
struct Nothing {}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = TYPES.into());
    let mut document = Document { types: settings.into_generator(), methods: Vec::new() };
    let d = &mut document;
    d.method::<Create, Info>("create", "A device without a table (DM_DEV_CREATE).");
    d.method::<Remove, Removed>("remove", "Removes a device (DM_DEV_REMOVE).");
    d.method::<Rename, Info>("rename", "Another name, or a uuid once (DM_DEV_RENAME).");
    d.method::<Load, Loaded>("load", "A table into the inactive slot (DM_TABLE_LOAD); the live one is as it was.");
    d.method::<Which, Info>("clear", "Drops the inactive table (DM_TABLE_CLEAR).");
    d.method::<Suspend, Info>("suspend", "No request is begun any more; waits for those under way (DM_DEV_SUSPEND).");
    d.method::<Resume, Resumed>(
        "resume",
        "The inactive table becomes the live one, and requests go on (DM_DEV_SUSPEND).",
    );
    d.method::<Message, Reply>("message", "A message to a target or, with @, to the device (DM_TARGET_MSG).");
    d.method::<Which, Info>("info", "What is to be known of a device (DM_DEV_STATUS).");
    d.method::<Nothing, Vec<Info>>("list", "All devices, by minor number (DM_LIST_DEVICES).");
    d.method::<Query, Vec<Line>>("table", "The lines of a table (DM_TABLE_STATUS).");
    d.method::<Query, Vec<Line>>("status", "The status of its segments (DM_TABLE_STATUS).");
    d.method::<Query, Vec<Dep>>("deps", "What a device lies on (DM_TABLE_DEPS).");
    d.method::<Nothing, Vec<TargetType>>("targets", "The types of targets (DM_LIST_VERSIONS).");
    d.method::<Wait, Info>("wait", "Returns when the device's event number is above one (DM_DEV_WAIT).");
    d.method::<StatsQuery, Vec<Snapshot>>("stats", "What devices have done and are doing.");
    d.method::<Nothing, Version>("version", "Versions (DM_VERSION).");
    let (waiting, data) = (d.types.subschema_for::<Waiting>(), d.types.subschema_for::<ErrorData>());
    let mut types = d.types.take_definitions(true);
    types.remove("Nothing");
    json!({
        "openrpc": "1.3.2",
        "info": {"title": "vhost-user-dm control socket", "version": env!("CARGO_PKG_VERSION"), "description": description()},
        "methods": document.methods,
        "x-notifications": [{"name": "waiting", "paramStructure": "by-name", "params": waiting}],
        "x-error-data": data,
        "components": {"schemas": types},
    })
}

#[test]
fn the_file_says_what_is_sent() {
    let document = document();
    let methods: Vec<&str> =
        document["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(methods, METHODS);
    let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
    expect_test::expect_file!["../../control.schema.json"].assert_eq(&text);
}
