// What the check.js of the clients share.

/** Does one step and prints a line for it. */
exports.step = async function step(name, work) {
  const begun = Date.now();
  const result = await work();
  console.log(`ok ${name} (${Date.now() - begun} ms)`);
  return result;
};

/** Runs all steps and ends the process, whatever a client left open: with 1 and the first error, if there is one. */
exports.run = function run(main) {
  main().then(
    () => process.exit(0),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
};
