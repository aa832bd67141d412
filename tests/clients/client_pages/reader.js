// Runs in a page: follows channels with the gateway's module, and writes down what it is told.
globalThis.readers = {};

globalThis.read = async (name, module, base, channel, options = {}) => {
  const { follow, comparePositions } = await import(module);
  const told = { events: [], gaps: [], states: [], statuses: [], wrong: [], mark: Math.random() };
  const followed = follow(base, channel, options);
  let last = "0-0";
  const isLater = (id, what) => {
    if (comparePositions(id, last) < 0) told.wrong.push(`${what} ${id} after ${last}`);
    last = id;
  };
  followed.addEventListener("event", ({ detail }) => {
    isLater(detail.id, "event");
    told.events.push(detail);
  });
  followed.addEventListener("gap", ({ detail }) => {
    isLater(detail.id, "gap");
    told.gaps.push(detail.reason);
  });
  followed.addEventListener("state", ({ detail }) => {
    isLater(detail.id, "state");
    told.states.push(detail.id);
  });
  followed.addEventListener("status", ({ detail }) => told.statuses.push(detail));
  globalThis.readers[name] = { followed, told };
};

/** What a reader was told, in short: positions, the state at the end, transports that worked. */
globalThis.report = (name) => {
  const { followed, told } = globalThis.readers[name];
  const { position, state, status } = followed;
  return {
    ids: told.events.map(({ id }) => id),
    data: told.events.map(({ data }) => data),
    transports: [...new Set(told.statuses.filter((s) => s.connected).map((s) => s.transport))],
    gaps: told.gaps,
    wrong: told.wrong,
    mark: told.mark,
    begin: told.states[0],
    ...{ position, state: state === undefined ? null : state, status },
  };
};
