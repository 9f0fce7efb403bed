import './statecast.js'; export const { Statecast } = globalThis; // statecast.js as a module.
