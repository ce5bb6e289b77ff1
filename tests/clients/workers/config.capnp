using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "worker", worker = .worker),
    (name = "internet", network = (allow = ["private"])),
  ],
  sockets = [(name = "http", http = (), service = "worker")],
);

const worker :Workerd.Worker = (
  modules = [
    (name = "worker.mjs", esModule = embed "worker.mjs"),
    (name = "client.js", esModule = embed "node_modules/quotasite-client/dist/client.js"),
    (name = "connection.js", esModule = embed "node_modules/quotasite-client/dist/connection.js"),
    (name = "errors.js", esModule = embed "node_modules/quotasite-client/dist/errors.js"),
    (name = "reset.js", esModule = embed "node_modules/quotasite-client/dist/reset.js"),
  ],
  bindings = [
    (name = "SITE", fromEnvironment = "SITE"),
    (name = "MOVED", fromEnvironment = "MOVED"),
    (name = "TOKEN", fromEnvironment = "TOKEN"),
  ],
  compatibilityDate = "2022-01-01",
);
