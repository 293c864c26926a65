# The profile and the commands of a recipe.  Source it after parse_options.sh.
#
#   recipe_commands KIND [OPTIONS]  print the commands of this call's systems (see
#                                   python -m icefall_kd.bin.recipe_commands --help)
#   run_commands KIND [OPTIONS]     run these commands one after the other; with
#                                   dry_run=true only print them
#
# Reads conf/profiles.yaml in the current folder, the recipe's.  Sets profile, variants,
# systems and exp where the options left them empty, and the values of the profile:
# labelled, unlabelled, pseudo_labelled, pseudo_suffix, dev_set, test_sets, check_sets,
# profile_jobs.

recipe_commands() {
  python -m icefall_kd.bin.recipe_commands "$1" --profile "$profile" \
    --variants "${variants:-}" --systems "${systems:-}" --exp "${exp:-}" "${@:2}"
}

run_commands() {
  local lines command
  lines=$(recipe_commands "$@")
  while IFS=$'\t' read -r -u 3 _ _ command; do
    if [[ ${dry_run:-false} == true ]]; then
      printf '%s\n' "$command"
    else
      eval "$command"
    fi
  done 3<<<"$lines"
}

_recipe_profile=$(recipe_commands profile)
eval "$_recipe_profile"
